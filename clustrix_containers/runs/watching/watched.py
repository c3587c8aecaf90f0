"""A run that is being watched: its jobs are settled as their cluster and their marks say."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import itertools
import json
import logging
import math
import operator
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from clustrix_containers.api.jobs import Job
from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Cluster, staging
from clustrix_containers.clusters.task import Fetched, Handle
from clustrix_containers.errors import (
    ClusterError,
    Error,
    RemoteTraceback,
    ResultLost,
    UntrustedResultError,
)
from clustrix_containers.results import directory
from clustrix_containers.results import outcome as outcomes
from clustrix_containers.results.outcome import Expected, Outcome
from clustrix_containers.runs.record import Record, Run, Seen
from clustrix_containers.runs.record.handles import unpack
from clustrix_containers.worker.contract import ENTRY

from .liveness import Liveness
from .poller import poller_of

_log = logging.getLogger("clustrix_containers")

RETRY = 0.1
"""Seconds after which an outcome that is not there yet is first looked for again."""

LONGEST_RETRY = 1.0

COLLECTORS = 4
"""How many batches of a run may be fetched at the same time: a large result does not hold up others."""

FETCHES = threading.BoundedSemaphore(16)
"""How many batches this process fetches at the same time."""


@dataclass(slots=True)
class _Ended:
    """An element that has ended and whose outcome is not known yet. Times are monotonic.

    ``due`` is when its outcome is looked for again; infinite while that is being done.
    """

    status: Status
    since: float
    due: float
    pause: float = RETRY


class WatchedRun:
    """One run and its jobs.

    ``trust`` allows unpickling. ``how`` is what the target chose at submission; ``is_array``: whether it came from ``map``.
    """

    def __init__(self, run: Run, cluster: Cluster, record: Record, *, trust: bool) -> None:
        self.id, self.image, self.how, self.is_array = run.id, run.image, run.how, run.array
        self._cluster, self._handles = cluster, unpack(run.handles, run.id)
        self._record = record
        self._directory = record.run_directory(run.id)
        self._script, self._trust = run.main, trust
        self._task = run.task(self._directory)
        self.jobs = [Job(self, element) for element in range(run.count)]
        self._open = dict.fromkeys(range(run.count))
        """The elements that have not ended, as far as is known."""
        self._ended: dict[int, _Ended] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._liveness = Liveness(run.id, run.target)
        self._condition = threading.Condition()
        self._collectors = self._fetching = 0
        """Threads that fetch outcomes, and how many of them are at it."""
        self._watching = False
        self.over = False

    @property
    def open_count(self) -> int:
        return len(self._open)

    def watch(self) -> None:
        """Have the cluster's poller settle the jobs from now on."""
        self._watching = True
        poller_of(self._cluster).watch(self)

    def trust(self) -> None:
        """Unpickle this run's results though this user did not build its image."""
        self._trust = True

    def save(self, job: Job, path: Path, timeout: float | None = None) -> None:
        """Write the verified pickle of a job's value to ``path``; its failure is raised."""
        concurrent.futures.wait([job], timeout)
        if not job.done():
            raise ClusterError(f"{self.id}/{job.element} is not done yet")
        outcome = self._outcomes.get(job.element)
        if outcome is None:
            job.result(0)
        else:
            outcomes.save(outcome, path)

    def cancel(self, elements: Sequence[int]) -> None:
        """Ask the cluster to end these elements."""
        # With the last of an array all of it goes: that is simpler to do, and nothing is left.
        whole = len(elements) > 1 and all(job.done() for job in self.jobs)
        chosen = range(len(self.jobs)) if whole else elements
        self._cluster.cancel([self._handles[element] for element in chosen])
        if self._watching:
            poller_of(self._cluster).ticker.wake(self, elements)

    # --- logs ------------------------------------------------------------------------------

    def logs(self, element: int, *, follow: bool = False) -> Iterator[bytes]:
        """What an element prints; with ``follow`` to its end, also where it runs again."""
        while True:
            handle = self._handles[element]
            try:
                for _, chunk in self._cluster.logs([handle], follow=follow):
                    yield chunk
            except ClusterError:
                # What was lost with its node has no output to give any more.
                if not follow or not self._runs_again(handle):
                    raise
            else:
                if not follow or not self._runs_again(handle):
                    return

    def _runs_again(self, handle: Handle) -> bool:
        """Whether an element that has just ended under this handle runs again under another."""
        job = self.jobs[handle.element]
        while self._handles[handle.element] == handle and self._watching and not job.done():
            status = self._cluster.states([handle])[handle]
            if status.state.terminal and not self._liveness.is_lost(status, handle.attempt):
                break
            concurrent.futures.wait([job], 0.2)
        return self._handles[handle.element] != handle

    # --- what the poller calls -------------------------------------------------------------

    def open_handles(self, elements: set[int] | None = None) -> list[Handle]:
        """The handles of these elements, or of all, that have not ended."""
        with self._condition:
            for element in [it for it in self._open if self.jobs[it].done()]:
                del self._open[element]
            chosen = self._open if elements is None else elements & self._open.keys()
            handles = [self._handles[element] for element in chosen]
        self._finish_if_over()
        return handles

    def observe(self, statuses: Mapping[Handle, Status]) -> bool:
        """Take note of what the cluster reports; whether anything changed."""
        try:
            if refused := [it for it, status in statuses.items() if status.cause is Cause.REFUSED]:
                # It must not start later, when nobody waits for it. Before its job is settled:
                # then this process may end.
                with contextlib.suppress(ClusterError):
                    self._cluster.cancel(refused)
            changed = self._liveness.absent()
            for handle, status in statuses.items():
                changed |= self._observe(handle, status)
        except Exception as error:
            self.give_up(error)
            return True
        return changed

    def _observe(self, handle: Handle, reported: Status) -> bool:
        element = handle.element
        status = self._liveness.observe(handle, reported)
        job = self.jobs[element]
        if status is None or self._handles[element] != handle or job.done():
            return False
        changed = status.state is not job.status.state
        job.observe(status)
        if status.state is State.CANCELLED:
            job.settle(None, cancelled=True)
        elif status.state.terminal:
            self._collect_soon(element, status)
        return changed

    def give_up(self, error: BaseException) -> None:
        """End the waiting for all that has not been settled; the run itself goes on."""
        for job in self.jobs:
            job.settle(None, error=error)
        with self._condition:
            self._open.clear()
            self._ended.clear()
            self.over = True
            self._condition.notify_all()

    def _finish_if_over(self) -> None:
        with self._condition:
            if self._open or self._ended or self.over:
                return
            self.over = True
        states = Counter(job.status.state for job in self.jobs)
        # It may have been pruned in the meantime.
        with contextlib.suppress(ClusterError):
            self._record.update(self.id, state="done", seen=Seen(time.time(), states))
        poller_of(self._cluster).ticker.wake(self)

    # --- collecting outcomes ---------------------------------------------------------------

    def _collect_soon(self, element: int, status: Status) -> None:
        now = time.monotonic()
        with self._condition:
            self._open.pop(element, None)
            self._ended[element] = _Ended(status, now, now)
            if self._collectors == self._fetching < COLLECTORS:
                self._collectors += 1
                threading.Thread(
                    target=self._collect_all, name=f"clustrix-collect-{self.id}", daemon=True
                ).start()
            self._condition.notify()

    def _collect_all(self) -> None:
        """Settle what has ended, in batches; waits of elements run side by side."""
        try:
            while batch := self._next_batch():
                with FETCHES:
                    self._collect(batch)
                with self._condition:
                    self._fetching -= 1
        except BaseException as error:
            self.give_up(error)
            with self._condition:
                self._fetching -= 1
                self._collectors -= 1

    def _next_batch(self) -> dict[int, _Ended]:
        """What is due now; waits for that, and is empty when nothing is left to wait for."""
        with self._condition:
            while True:
                now = time.monotonic()
                for element in [it for it in self._ended if self.jobs[it].done()]:
                    del self._ended[element]
                due = {it: ended for it, ended in self._ended.items() if ended.due <= now}
                if due:
                    for ended in due.values():
                        ended.due = math.inf
                    self._fetching += 1
                    return due
                soonest = min((it.due for it in self._ended.values()), default=math.inf)
                if soonest == math.inf:
                    # What is left is being fetched by others, who look after it.
                    self._collectors -= 1
                    break
                self._condition.wait(soonest - now)
        self._finish_if_over()
        return {}

    def _collect(self, batch: Mapping[int, _Ended]) -> None:
        """Fetch the outcomes of these elements at once, and settle those that are known then."""
        by_attempt = operator.attrgetter("attempt")
        all_handles = sorted((self._handles[element] for element in batch), key=by_attempt)
        for attempt, group in itertools.groupby(all_handles, key=by_attempt):
            handles = list(group)
            try:
                fetched = self._cluster.fetch(replace(self._task, attempt=attempt), handles)
            except Error as error:
                fetched = dict.fromkeys(handles, Fetched(error=error))
            lost = {
                handle.element: batch[handle.element]
                for handle in handles
                if self._conclude(handle, batch[handle.element], fetched.get(handle) or Fetched())
            }
            self._submit_again(lost, attempt + 1)

    def _conclude(self, handle: Handle, ended: _Ended, fetched: Fetched) -> bool:
        """Settle an element, or leave it for later; True if it is lost and is to run again."""
        job, status, error = self.jobs[handle.element], ended.status, fetched.error
        place = self._directory, self.id, handle.element, handle.attempt
        try:
            if outcome := directory.collect(Expected(*place, self._key)):
                self._settle(job, outcome, status)
                return False
        except Error as failure:
            error = failure
        if error is None:
            later = self._liveness.is_late(status, fetched, ended.since)
        else:
            later = self._liveness.may_pass(handle.element, error)
        if later:
            self._later(ended)
        elif self._liveness.is_lost(status, handle.attempt):
            return True
        else:
            job.settle(None, error=error or self._without_mark(job, status))
        return False

    def _later(self, ended: _Ended) -> None:
        ended.due = time.monotonic() + ended.pause
        ended.pause = min(LONGEST_RETRY, ended.pause * 1.5)

    def _submit_again(self, lost: Mapping[int, _Ended], attempt: int) -> None:
        elements = [element for element in lost if not self.jobs[element].done()]
        if not elements:
            return
        for element in elements:
            status = lost[element].status
            _log.warning("%s/%d runs again: %s", self.id, element, status.message)
        task = replace(self._task, elements=tuple(elements), attempt=attempt)
        try:
            handles = self._cluster.submit(task)
        except Error as error:
            for element in elements:
                if self._liveness.may_pass(element, error):
                    self._later(lost[element])
                else:
                    self.jobs[element].settle(None, error=error)
            return
        self._record.update(self.id, more=handles)
        with self._condition:
            for handle in handles:
                self._handles[handle.element] = handle
                self._ended.pop(handle.element, None)
                self._open[handle.element] = None
        poller_of(self._cluster).ticker.wake(self, elements)

    # --- outcomes --------------------------------------------------------------------------

    def _settle(self, job: Job, outcome: Outcome, status: Status) -> None:
        if outcome.mark.outcome == "ok":
            self._outcomes[job.element] = outcome
            job.settle(functools.partial(self.load, outcome))
            return
        try:
            self.load(outcome, status)
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError) and error.name:
                _advise(error, error.name)
            job.settle(None, error=error)

    @functools.cached_property
    def _key(self) -> bytes:
        try:
            return (self._directory / "key").read_bytes()
        except OSError as error:
            raise ResultLost(f"the key of run {self.id} cannot be read: {error}") from error

    def load(self, outcome: Outcome, status: Status | None = None) -> Any:
        """The outcome's value, unpickled from the verified copy; or raise what it stands for."""
        from clustrix_containers.capture import pickling

        if not self._trust and outcome.value is not None:
            raise UntrustedResultError(
                f"the result of {self.id}/{outcome.mark.element} comes from an image that you did"
                f" not build; it is kept as bytes in {outcome.value}",
                hint="Unpickling runs code of whoever made the image. --trust does it all the same.",
                path=str(outcome.value),
            )
        return outcomes.load(
            outcome,
            status=status,
            unpickle=lambda data, buffers: pickling.load(data, buffers, main=self._main),
        )

    def _main(self) -> ModuleType:
        """The script that the run's types belong to: this process's own, or that of the image's code."""
        from clustrix_containers.capture.source.program import script_module
        from clustrix_containers.image import build as builder

        def source() -> bytes:
            files = builder.read_code(staging.layout().image(self.image))
            return files[json.loads(files[ENTRY])["script"]]

        return script_module(Path(self._script) if self._script else None, source)

    def _without_mark(self, job: Job, status: Status) -> Error:
        error = outcomes.without_mark(status, run=self.id, element=job.element)
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
