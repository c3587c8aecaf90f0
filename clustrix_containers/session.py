"""A run that is being watched: its jobs are settled as their cluster and their marks say."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .clusters import Cluster
from .errors import ClusterError, Error, RemoteTraceback, ResultLost, UntrustedResultError
from .futures import Job, Ticker
from .jobs import State, Status
from .record import Run

if TYPE_CHECKING:
    from .results.outcome import Outcome

MARK_GRACE = 5.0
"""Seconds to wait for the mark of an element that its cluster says has ended."""


class Session:
    """One run and its jobs: asks the cluster what they do, and settles them.

    ``main`` gives the script that the run's types belong to; ``trust`` allows unpickling;
    ``done`` is called when every job is settled.
    """

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        ids: Sequence[str],
        directory: Path,
        main: Callable[[], ModuleType],
        trust: bool,
        done: Callable[[], None],
    ) -> None:
        self._run, self._cluster, self._ids = run, cluster, ids
        self._directory = directory
        self._main = main
        self._trust = trust
        self._done = done
        self.jobs = [Job(self, element) for element in range(run.count)]
        shortest, longest = cluster.poll_interval
        self._ticker = Ticker(shortest, longest)
        self._outcomes: dict[int, Outcome] = {}

    @property
    def run(self) -> str:
        return self._run.id

    @property
    def image(self) -> str:
        return self._run.image

    @property
    def is_array(self) -> bool:
        """Whether the run came from ``map``."""
        return bool(self._run.details.get("array"))

    def trust(self) -> None:
        """Unpickle this run's results though this user did not build its image."""
        self._trust = True

    def count_states(self) -> dict[State, int]:
        """How many elements are in which state, asked now."""
        counts: dict[State, int] = {}
        for status in self._cluster.states(self._ids).values():
            counts[status.state] = counts.get(status.state, 0) + 1
        return counts

    def save(self, job: Job, path: Path, timeout: float | None = None) -> None:
        """Write the verified pickle of a job's value to ``path``; its failure is raised."""
        from .results import outcome as outcomes

        concurrent.futures.wait([job], timeout)
        if not job.done():
            raise ClusterError(f"{self.run}/{job.element} is not done yet")
        outcome = self._outcomes.get(job.element)
        if outcome is None:
            job.result(0)
        else:
            outcomes.save(outcome, path)

    def logs(self, element: int, *, follow: bool = False) -> Iterator[bytes]:
        return self._cluster.logs(self._ids[element], follow=follow)

    def cancel(self, elements: Sequence[int]) -> None:
        self._cluster.cancel([self._ids[element] for element in elements])
        self._ticker.wake()

    def watch(self) -> None:
        """Start watching in a daemon thread."""
        threading.Thread(target=self._watch, name=f"clustrix-watch-{self.run}", daemon=True).start()

    def _watch(self) -> None:
        open_jobs = {job.element: job for job in self.jobs}
        failures = 0
        try:
            while open_jobs:
                try:
                    changed = self.poll(open_jobs)
                    failures = 0
                except ClusterError:
                    # A failed query means unknown, never absent.
                    failures += 1
                    if failures > 20:
                        raise
                    changed = False
                if open_jobs:
                    self._ticker.wait(changed=changed)
            self._done()
        except BaseException as error:
            for job in open_jobs.values():
                job.settle(None, error=error)

    def poll(self, open_jobs: dict[int, Job]) -> bool:
        """Ask once; settle and drop from ``open_jobs`` what has ended. Whether anything changed."""
        for element in [element for element, job in open_jobs.items() if job.done()]:
            del open_jobs[element]
        if not open_jobs:
            return True
        by_id = {self._ids[element]: element for element in open_jobs}
        changed = False
        for identity, status in self._cluster.states(list(by_id)).items():
            job = open_jobs[by_id[identity]]
            changed |= status.state is not job.status.state
            if status.state is not State.UNKNOWN:
                job.observe(status)
            if status.state.terminal:
                self._settle(job, status)
                del open_jobs[job.element]
        return changed

    def _settle(self, job: Job, status: Status) -> None:
        if status.state is State.CANCELLED:
            job.settle(None, cancelled=True)
            return
        try:
            outcome = self._collect(job, status)
            if outcome is None:
                job.settle(None, error=self._without_mark(job, status))
            elif outcome.mark.outcome == "ok":
                self._outcomes[job.element] = outcome
                job.settle(lambda: self.load(outcome))
            else:
                job.settle(None, error=self._exception(outcome, status))
        except Error as error:
            job.settle(None, error=error)

    def _collect(self, job: Job, status: Status) -> Outcome | None:
        """The element's outcome; a mark that a slow file system still hides is waited for."""
        from .results import directory

        end = time.monotonic() + (MARK_GRACE if status.state is State.SUCCEEDED else 0)
        while True:
            outcome = directory.collect(self._directory, job.element, 0, self._key(), run=self.run)
            if outcome is not None or time.monotonic() > end:
                return outcome
            time.sleep(0.1)

    def _key(self) -> bytes:
        try:
            return (self._directory / "key").read_bytes()
        except OSError as error:
            raise ResultLost(f"the key of run {self.run} is not there any more: {error}") from error

    def _exception(self, outcome: Outcome, status: Status) -> BaseException:
        try:
            self.load(outcome, status)
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError) and error.name:
                _advise(error, error.name)
            return error
        raise AssertionError("an outcome that is not ok raises")

    def load(self, outcome: Outcome, status: Status | None = None) -> Any:
        """The outcome's value, unpickled from the verified copy; or raise what it stands for."""
        from .capture import pickling
        from .results import outcome as outcomes

        if not self._trust and outcome.value is not None:
            raise UntrustedResultError(
                f"the result of {self.run}/{outcome.mark.element} comes from an image that you did"
                f" not build; it is kept as bytes in {outcome.value}",
                hint="Unpickling runs code of whoever made the image. --trust does it all the same.",
                path=str(outcome.value),
            )
        return outcomes.load(
            outcome,
            status=status,
            unpickle=lambda data, buffers: pickling.load(data, buffers, main=self._main),
        )

    def _without_mark(self, job: Job, status: Status) -> Error:
        from .results import outcome as outcomes

        error = outcomes.without_mark(status, run=self.run, element=job.element)
        if isinstance(error, ResultLost):
            error.hint = f"`cxc rerun {self.image}` runs the same image again."
            return error
        tail = b"".join(self.logs(job.element))[-2000:].decode("utf-8", "replace").strip()
        if tail:
            error.hint = f"{error.hint or ''}\n  The last of its output:\n{tail}".strip()
        return error


def _advise(error: ModuleNotFoundError, module: str) -> None:
    """Add what would bring the module into the image: a note, or to the traceback before 3.11."""
    from .capture.distributions import suggest

    advice = suggest(module)
    if advice and hasattr(error, "add_note"):
        error.add_note(advice)
    elif advice and isinstance(error.__cause__, RemoteTraceback):
        error.__cause__.text += f"\n{advice}"
