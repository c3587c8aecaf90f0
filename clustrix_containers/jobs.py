"""What a cluster may know of a job, and what it tells about it: frozen values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class State(enum.Enum):
    """Where one element is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """A query failed. Never means absent."""

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


@dataclass(frozen=True, slots=True)
class Resources:
    """What one element gets.

    ``cpus``: cores (fractions allowed). ``memory``: bytes, or ``None`` for no limit.
    ``timeout``: seconds for one element, or ``None``. ``shm``: bytes of ``/dev/shm``.
    """

    cpus: float = 1.0
    memory: int | None = None
    timeout: float | None = None
    gpus: int = 0
    shm: int = 1 << 30
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """All that a cluster may know of a run.

    ``image`` is ``repository@sha256:…`` or, for an image layout directory,
    ``oci:DIRECTORY@sha256:…``. ``elements`` are the indices to run (usually
    ``range(count)``), ``command`` the image's entry point, ``array`` whether the run came from
    ``map``. ``retries`` is how often an element that fails may run again. ``directory`` is the run's own directory on the client:
    ``results/`` in it is where marks and results are to arrive, ``logs/`` where
    output goes, ``key`` (0600) holds the run's key.
    """

    run: str
    name: str
    image: str
    elements: range | tuple[int, ...]
    resources: Resources
    directory: Path
    attempt: int = 0
    max_parallel: int | None = None
    command: tuple[str, ...] = ()
    array: bool = False
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a cluster itself knows of a run, without this user's record.

    ``image`` is ``repository@sha256:…``, ``key`` the run's key, ``ids`` those of its elements.
    """

    run: str
    name: str
    image: str
    count: int
    array: bool
    key: bytes
    ids: tuple[str, ...]
    command: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    retries: int = 0
