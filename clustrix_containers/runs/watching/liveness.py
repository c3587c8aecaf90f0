"""Absent, unknown, lost and late elements: what they are is decided here, for all clusters.

* A query that failed means *unknown*, never absent: an element stays as it was, and a target that
  is unreachable for :data:`PATIENCE` ends the waiting, not the run.
* *Absent* is what :data:`ABSENT_POLLS` successful queries in a row, over at least
  :data:`ABSENT_GRACE`, do not know: it has ended.
* An element that has ended and whose mark is not there may be *late*: it is waited for as long as
  its cluster says, else for :data:`MARK_GRACE` if it succeeded.
* One that was evicted, preempted or whose node was lost, and that left no mark, is *lost*: it is
  submitted again, at most :data:`MAX_LOSSES` times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.task import Fetched, Handle
from clustrix_containers.errors import Error

ABSENT_POLLS = 3
ABSENT_GRACE = 10.0
"""Seconds between the first and the last of those polls, at least."""

MARK_GRACE = 10.0
"""Seconds for which the mark of an element that succeeded may be late."""

MAX_LOSSES = 3

PATIENCE = 900.0
"""Seconds for which a target, or an element's outcome, may be unreachable."""


class Liveness:
    """What a run's elements are, from one poll to the next. ``clock`` gives seconds."""

    def __init__(self, run: str, target: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._target, self._clock = run, target, clock
        self._reached = clock()
        self._absent: dict[int, tuple[int, float]] = {}
        """For how many polls an element has been absent, and since when."""
        self._unfetched: dict[int, float] = {}
        """Since when an element's outcome could not be fetched."""

    def observe(self, handle: Handle, status: Status) -> Status | None:
        """How an element is, given what its cluster reports; ``None`` for no news.

        ``Error`` when the target has been unreachable for too long.
        """
        now = self._clock()
        if status.state is State.UNKNOWN:
            if now - self._reached > PATIENCE:
                raise Error(
                    f"the target {self._target} has been unreachable for {PATIENCE:g} s:"
                    f" {status.message}",
                    hint=f"The run goes on without this client: cxc result {self._run}",
                )
            return None
        self._reached = now
        if status.state is not State.ABSENT:
            self._absent.pop(handle.element, None)
            return status
        polls, since = self._absent.get(handle.element, (0, now))
        self._absent[handle.element] = (polls + 1, since)
        if polls + 1 < ABSENT_POLLS or now - since < ABSENT_GRACE:
            return None
        cause = Cause.DIED if status.cause is Cause.NONE else status.cause
        message = status.message or f"the target {self._target} does not know it any more"
        return replace(status, state=State.FAILED, cause=cause, message=message)

    def absent(self) -> bool:
        """Whether an element is absent and not given up yet: it is to be asked about soon."""
        return bool(self._absent)

    def is_late(self, status: Status, fetched: Fetched, ended: float) -> bool:
        """Whether the mark of an element that ended at the time ``ended`` may still show up."""
        grace = fetched.grace
        if grace is None:
            grace = MARK_GRACE if status.state is State.SUCCEEDED else 0.0
        return self._clock() - ended < grace

    def may_pass(self, element: int, error: Error) -> bool:
        """Whether fetching an element's outcome, which failed, is to be tried again."""
        if not error.fields.get("temporary"):
            return False
        since = self._unfetched.setdefault(element, self._clock())
        return self._clock() - since < PATIENCE

    def is_lost(self, status: Status, attempt: int) -> bool:
        """Whether an element that left no mark is to be submitted again."""
        failed = status.state is State.FAILED
        return failed and status.cause.infrastructure and attempt < MAX_LOSSES
