"""Job and JobArray: real ``concurrent.futures`` Futures over a run that lives elsewhere.

A Job stays *pending* for ``concurrent.futures`` until its outcome has arrived, so that it can be
cancelled while it runs; :meth:`Job.running` reports the last known status. Results stay on disk
and are read on demand: an array of ten thousand keeps none of them in memory.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from .status import State, Status

if TYPE_CHECKING:
    from clustrix_containers.runs.watching.watched import WatchedRun


class Job(concurrent.futures.Future[Any]):
    """One element of a run: a Future that can be found again by its ``run`` and ``element``.

    ``result()`` returns the function's value or raises its exception with the remote traceback
    as ``__cause__``; a run that ended otherwise raises a :class:`~clustrix_containers.errors.JobError`.
    """

    def __init__(self, run: WatchedRun, element: int) -> None:
        super().__init__()
        self._run = run
        self.element = element
        self._status = Status(State.PENDING)

    @property
    def run(self) -> str:
        """The run's id: what ``attach`` and the command line take."""
        return self._run.id

    @property
    def image(self) -> str:
        """The digest of the image that this job runs."""
        return self._run.image

    @property
    def how(self) -> str:
        """How its target runs it and where its result goes, as chosen at submission; or ``""``."""
        return self._run.how

    @property
    def status(self) -> Status:
        """The last status that the cluster reported."""
        return self._status

    def running(self) -> bool:
        return not self.done() and self._status.state is State.RUNNING

    def cancel(self) -> bool:
        """Cancel the job, whether it is pending or running. False if it has ended."""
        if not self.settle(None, cancelled=True):
            return self.cancelled()
        self._run.cancel([self.element])
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The value; TimeoutError after ``timeout`` seconds of waiting, as with any Future."""
        load = super().result(timeout)
        return load()

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """The lines that the element has printed; with ``follow`` until it ends."""
        for chunk in self._run.logs(self.element, follow=follow):
            yield from chunk.decode("utf-8", "replace").splitlines(keepends=True)

    def observe(self, status: Status) -> None:
        """Record the status that the cluster reported (called by the run)."""
        self._status = status

    def settle(
        self,
        load: Callable[[], Any] | None,
        *,
        error: BaseException | None = None,
        cancelled: bool = False,
    ) -> bool:
        """Finish this Future once (called by the run); False if it is finished already."""
        if cancelled:
            if self.done() or not super().cancel():
                return False
            self._status = Status(State.CANCELLED, message="cancelled")
            with contextlib.suppress(RuntimeError):
                self.set_running_or_notify_cancel()
            return True
        try:
            if not self.set_running_or_notify_cancel():
                return False
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(load)
        except (concurrent.futures.InvalidStateError, RuntimeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"<Job {self.run}/{self.element} {self._status.state.value}>"


class JobArray:
    """The jobs of one ``map``: one image, one array.

    Indexing gives Jobs. Iterating gives the *results* in order, as ``Executor.map`` does;
    :meth:`as_completed` gives Jobs as they end.
    """

    def __init__(self, run: WatchedRun, jobs: Sequence[Job]) -> None:
        self._run = run
        self._jobs = tuple(jobs)

    @property
    def run(self) -> str:
        """The run's id: what ``attach`` and the command line take."""
        return self._run.id

    @property
    def image(self) -> str:
        """The digest of the image that all elements run."""
        return self._run.image

    @property
    def how(self) -> str:
        """How its target runs it and where its results go, as chosen at submission; or ``""``."""
        return self._run.how

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Job, ...]: ...
    def __getitem__(self, index: int | slice) -> Job | tuple[Job, ...]:
        return self._jobs[index]

    def __iter__(self) -> Iterator[Any]:
        return self.results()

    def results(self, timeout: float | None = None) -> Iterator[Any]:
        """The values in order; an exception is raised when its turn comes."""
        return concurrent_results(self._jobs, timeout)

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """The Jobs as they end, successfully or not."""
        yield from concurrent.futures.as_completed(self._jobs, timeout)  # type: ignore[misc]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended; False after ``timeout`` seconds."""
        return not concurrent.futures.wait(self._jobs, timeout).not_done

    def done(self) -> bool:
        return all(job.done() for job in self._jobs)

    def cancel(self) -> int:
        """Cancel all that have not ended; gives their number."""
        cancelled = [job.element for job in self._jobs if job.settle(None, cancelled=True)]
        if cancelled:
            self._run.cancel(cancelled)
        return len(cancelled)

    def __repr__(self) -> str:
        return f"<JobArray {self.run} of {len(self._jobs)}>"


def concurrent_results(
    jobs: Sequence[concurrent.futures.Future[Any]], timeout: float | None
) -> Iterator[Any]:
    """The jobs' values in order; ``timeout`` is in seconds from now, for all of them."""
    end = None if timeout is None else time.monotonic() + timeout
    for job in jobs:
        yield job.result(None if end is None else max(0.0, end - time.monotonic()))
