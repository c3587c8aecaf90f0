"""How an element is, as its cluster sees it: frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """Where one element is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """A query failed. Never means absent."""
    ABSENT = "absent"
    """A query succeeded, and the cluster does not know the element. Never means ended."""

    @property
    def terminal(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Cause(enum.Enum):
    """Why an element FAILED, where the cluster knows better than the worker."""

    NONE = ""
    TIME_LIMIT = "time limit"
    MEMORY_LIMIT = "memory limit"
    DIED = "died"
    REFUSED = "refused"
    EVICTED = "evicted"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    DELETED = "deleted"

    @property
    def infrastructure(self) -> bool:
        """Not the function's fault: it is run again, and that is not one of the user's retries."""
        return self in (Cause.EVICTED, Cause.NODE_LOST, Cause.PREEMPTED)


@dataclass(frozen=True, slots=True)
class Status:
    """One element as its cluster sees it. ``message`` is one sentence for a person."""

    state: State
    cause: Cause = Cause.NONE
    exit_code: int | None = None
    message: str = ""
