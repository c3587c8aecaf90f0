"""The status of one element, as its cluster reports it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """The state of one element."""

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
    """Why an element failed, where the cluster knows more than the worker."""

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
        """An infrastructure failure: the element is run again, without using up a retry."""
        return self in (Cause.EVICTED, Cause.NODE_LOST, Cause.PREEMPTED)


@dataclass(frozen=True, slots=True)
class Status:
    """The status of one element. ``message`` is one sentence for a person."""

    state: State
    cause: Cause = Cause.NONE
    exit_code: int | None = None
    message: str = ""
