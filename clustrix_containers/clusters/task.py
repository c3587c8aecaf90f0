"""What a cluster may know of a run: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clustrix_containers.api.options import Resources


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
