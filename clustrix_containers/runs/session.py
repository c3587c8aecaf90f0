"""A run that is being watched: its jobs are settled as their cluster and their marks say."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.jobs import Job
from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Cluster
from clustrix_containers.errors import (
    ClusterError,
    Error,
    JobError,
    RemoteTraceback,
    ResultLost,
    UntrustedResultError,
)

from .record import Run
from .ticker import Ticker

if TYPE_CHECKING:
    from clustrix_containers.results.outcome import Outcome

_log = logging.getLogger("clustrix_containers")

MARK_GRACE = 5.0
"""Seconds to wait for the mark of an element that its cluster says has ended."""

MOST_LOSSES = 3
"""How often an element runs again that was lost through no fault of its own."""

PATIENCE = 900.0
"""Seconds for which a target may be out of reach before the waiting ends."""


class Session:
    """One run and its jobs: asks the cluster what they do, and settles them.

    ``main`` gives the script that the run's types belong to; ``trust`` allows unpickling;
    ``done`` is called when every job is settled; ``again`` submits elements once more, under an
    attempt's number, and gives their ids.
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
        again: Callable[[tuple[int, ...], int], Sequence[str]],
    ) -> None:
        self._run, self._cluster, self._ids = run, cluster, list(ids)
        self._attempts: dict[int, int] = {}
        self._again = again
        self._reached = time.monotonic()
        self._directory = directory
        self._main = main
        self._trust = trust
        self._done = done
        self.jobs = [Job(self, element) for element in range(run.count)]
        shortest, longest = cluster.poll_interval
        self._ticker = Ticker(shortest, longest)
        self._outcomes: dict[int, Outcome] = {}
        self._watching = False
        self._unfetched: dict[int, float] = {}
        """Since when an element's outcome could not be brought here."""

    @property
    def run(self) -> str:
        return self._run.id

    @property
    def image(self) -> str:
        return self._run.image

    @property
    def how(self) -> str:
        """What the target chose at submission, in a sentence or two."""
        return str(self._run.details.get("how") or "")

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
        from clustrix_containers.results import outcome as outcomes

        concurrent.futures.wait([job], timeout)
        if not job.done():
            raise ClusterError(f"{self.run}/{job.element} is not done yet")
        outcome = self._outcomes.get(job.element)
        if outcome is None:
            job.result(0)
        else:
            outcomes.save(outcome, path)

    def logs(self, element: int, *, follow: bool = False) -> Iterator[bytes]:
        """What an element prints; with ``follow`` to its end, also where it runs again."""
        while True:
            name = self._ids[element]
            try:
                yield from self._cluster.logs(name, follow=follow)
            except ClusterError:
                # What was lost with its node has no output to give any more.
                if not follow or not self._runs_again(element, name):
                    raise
            else:
                if not follow or not self._runs_again(element, name):
                    return

    def _runs_again(self, element: int, name: str) -> bool:
        """Whether what has just ended under the id ``name`` runs again under another."""
        job = self.jobs[element]
        while self._ids[element] == name and self._watching and not job.done():
            status = self._cluster.states([name])[name]
            if status.state.terminal and not self._to_run_again(element, status):
                break
            concurrent.futures.wait([job], 0.2)
        return self._ids[element] != name

    def cancel(self, elements: Sequence[int]) -> None:
        # With the last of an array all of it is to go: that is simpler to do, and nothing is left.
        whole = len(elements) > 1 and all(job.done() for job in self.jobs)
        self._cluster.cancel(
            [self._ids[it] for it in (range(len(self._ids)) if whole else elements)]
        )
        self._ticker.wake(elements)

    def move(self, moved: Mapping[int, tuple[int, str]]) -> None:
        """Take note of elements that run again: attempt and id of each."""
        for element, (attempt, name) in moved.items():
            self._attempts[element] = attempt
            self._ids[element] = name

    def watch(self) -> None:
        """Start watching in a daemon thread."""
        self._watching = True
        threading.Thread(target=self._watch, name=f"clustrix-watch-{self.run}", daemon=True).start()

    def _watch(self) -> None:
        open_jobs = {job.element: job for job in self.jobs}
        try:
            end = self._cluster.subscribe(self.run, self._ticker.tell)
            try:
                self._until_ended(open_jobs)
            finally:
                end()
            self._done()
        except BaseException as error:
            for job in open_jobs.values():
                job.settle(None, error=error)

    def _until_ended(self, open_jobs: dict[int, Job]) -> None:
        failures = 0
        news: set[int] | None = None
        while open_jobs:
            try:
                changed = self.poll(open_jobs, None if failures else news)
                failures = 0
            except ClusterError:
                # A failed query means unknown, never absent.
                failures += 1
                if failures > 20:
                    raise
                changed = False
            if open_jobs:
                news = self._ticker.wait(len(open_jobs), changed=changed)

    def poll(self, open_jobs: dict[int, Job], news: set[int] | None = None) -> bool:
        """Ask once; settle and drop from ``open_jobs`` what has ended. Whether anything changed.

        With ``news`` only about those elements.
        """
        asked = list(open_jobs) if news is None else [it for it in news if it in open_jobs]
        for element in asked:
            if open_jobs[element].done():
                del open_jobs[element]
        by_id = {self._ids[element]: element for element in asked if element in open_jobs}
        if not by_id:
            return False
        changed = False
        lost: dict[int, list[Job]] = {}
        statuses = self._cluster.states(list(by_id))
        if news is not None and any(it.cause is Cause.REFUSED for it in statuses.values()):
            # What one cannot start, perhaps none can.
            return self.poll(open_jobs)
        self._withdraw(statuses)
        for identity, status in statuses.items():
            job = open_jobs[by_id[identity]]
            changed |= status.state is not job.status.state
            if status.state is State.UNKNOWN:
                self._give_up(status)
                continue
            self._reached = time.monotonic()
            job.observe(status)
            if not status.state.terminal:
                continue
            if self._conclude(job, status):
                lost.setdefault(self._attempts.get(job.element, 0) + 1, []).append(job)
            if job.done():
                del open_jobs[job.element]
        for attempt, jobs in lost.items():
            self._run_again(jobs, attempt)
        return changed

    def _withdraw(self, statuses: Mapping[str, Status]) -> None:
        """End what could not be started: it must not start later, when nobody waits for it.

        Before its job is settled: then this process may end.
        """
        refused = [name for name, status in statuses.items() if status.cause is Cause.REFUSED]
        if refused:
            with contextlib.suppress(ClusterError):
                self._cluster.cancel(refused)

    def _give_up(self, status: Status) -> None:
        if time.monotonic() - self._reached > PATIENCE:
            raise Error(
                f"the target {self._run.target} has been out of reach for {PATIENCE:g} s: {status.message}",
                hint=f"The run goes on without this client: cxc result {self.run}",
            )

    def _conclude(self, job: Job, status: Status) -> bool:
        """Settle a job that has ended, unless it is to run again (True), or cannot be known yet."""
        try:
            if self._is_lost(job, status):
                return True
            self._settle(job, status)
        except Error as error:
            if not self._may_pass(job, error):
                job.settle(None, error=error)
        return False

    def _may_pass(self, job: Job, error: Error) -> bool:
        """Whether an element's outcome, which could not be brought here, is to be asked for again."""
        if not error.fields.get("temporary"):
            return False
        since = self._unfetched.setdefault(job.element, time.monotonic())
        return time.monotonic() - since < PATIENCE

    def _is_lost(self, job: Job, status: Status) -> bool:
        """Whether an element ended through no fault of its own, and left no outcome."""
        if not self._to_run_again(job.element, status):
            return False
        try:
            return self._collect(job, status) is None
        except JobError:
            return False

    def _to_run_again(self, element: int, status: Status) -> bool:
        lost = status.state is State.FAILED and status.cause.infrastructure
        return lost and self._attempts.get(element, 0) < MOST_LOSSES

    def _run_again(self, jobs: Sequence[Job], attempt: int) -> None:
        elements = tuple(job.element for job in jobs)
        for job in jobs:
            _log.warning("%s/%d runs again: %s", self.run, job.element, job.status.message)
        ids = self._again(elements, attempt)
        self.move({element: (attempt, name) for element, name in zip(elements, ids, strict=True)})

    def _settle(self, job: Job, status: Status) -> None:
        if status.state is State.CANCELLED:
            job.settle(None, cancelled=True)
            return
        outcome = self._collect(job, status)
        if outcome is None:
            job.settle(None, error=self._without_mark(job, status))
        elif outcome.mark.outcome == "ok":
            self._outcomes[job.element] = outcome
            job.settle(functools.partial(self.load, outcome))
        else:
            job.settle(None, error=self._exception(outcome, status))

    def _collect(self, job: Job, status: Status) -> Outcome | None:
        """The element's outcome; a mark that a slow file system still hides is waited for."""
        from clustrix_containers.results import directory

        end = time.monotonic() + (MARK_GRACE if status.state is State.SUCCEEDED else 0)
        attempt = self._attempts.get(job.element, 0)
        self._cluster.fetch(self._ids[job.element], self._directory, self._run.details["reference"])
        while True:
            outcome = directory.collect(
                self._directory, job.element, attempt, self._key, run=self.run
            )
            if outcome is not None or time.monotonic() > end:
                return outcome
            time.sleep(0.1)

    @functools.cached_property
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
        from clustrix_containers.capture import pickling
        from clustrix_containers.results import outcome as outcomes

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
        from clustrix_containers.results import outcome as outcomes

        error = outcomes.without_mark(status, run=self.run, element=job.element)
        if isinstance(error, ResultLost):
            error.hint = f"`cxc rerun {self.image}` runs the same image again."
            return error
        tail = ""
        # The pod, or its node, may be gone with what it wrote; why it ended is known all the same.
        with contextlib.suppress(ClusterError):
            tail = b"".join(self.logs(job.element))[-2000:].decode("utf-8", "replace").strip()
        if tail:
            error.hint = f"{error.hint or ''}\n  The last of its output:\n{tail}".strip()
        return error


def _advise(error: ModuleNotFoundError, module: str) -> None:
    """Add what would bring the module into the image: a note, or to the traceback before 3.11."""
    from clustrix_containers.packages.resolution import suggest

    advice = suggest(module)
    if advice and hasattr(error, "add_note"):
        error.add_note(advice)
    elif advice and isinstance(error.__cause__, RemoteTraceback):
        error.__cause__.text += f"\n{advice}"
