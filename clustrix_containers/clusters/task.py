"""What a cluster may know of a run, and what it gives back: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clustrix_containers.api.options import Resources
from clustrix_containers.errors import Error


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a cluster can do. Asked before anything is built.

    ``images``: where a run's image is put: ``registry`` (nodes pull it, or results refer to it
    there), or ``layout`` (this user's image layout directory, from which the cluster stages it
    itself). ``max_array``: elements of one submission, ``None`` for no limit. ``retries``: whether
    an element that fails can be run again. ``max_parallel``: whether the elements that run at once
    can be limited. ``gpus``: whether elements can have GPUs. ``results``: the kinds of
    :mod:`~clustrix_containers.results.stores` that the target's option ``results`` may name.
    """

    images: Literal["registry", "layout"]
    max_array: int | None = None
    retries: bool = False
    max_parallel: bool = True
    gpus: bool = True
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """All that a cluster may know of one attempt of a run.

    ``image`` is the reference that ``stage`` gave. ``elements`` are the indices to run (usually
    ``range(count)``), ``command`` the image's entry point, ``array`` whether the run came from
    ``map``. ``retries`` is how often an element that fails may run again. ``directory`` is the
    run's own directory on the client: ``results/`` in it is where marks and results are to
    arrive, ``logs/`` where output goes, ``key`` (0600) holds the run's key. ``options`` are those
    of this type of cluster alone, given at the call and checked by ``check_options``.
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
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handle:
    """One element of one attempt, submitted. ``id`` is its cluster's own name for it.

    The record keeps handles, so any process can use them at any time. Only the cluster reads
    ``id``; elements may share one.
    """

    run: str
    attempt: int
    element: int
    id: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of fetching an element's outcome.

    Without ``error``, either its mark is in the run's directory now, or it has none there:
    ``grace`` is for how many seconds since the element ended one may still show up (a slow
    file system); ``None`` leaves that to the caller. A ``temporary`` error may be tried again.
    """

    grace: float | None = None
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class DiscoveredRun:
    """What a cluster itself knows of a run, without this user's record; ``key`` is the run's key.

    The task's ``directory`` means nothing here.
    """

    task: Task
    key: bytes
    handles: tuple[Handle, ...]
