"""The options of a function's image and of its runs.

One table, three places, the later wins: the decorator, ``.options(…)``, the call.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from clustrix_containers.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


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
class Options:
    """Resources of one element, what goes into the image, and where it runs.

    Resources
        ``cpus`` (cores), ``memory`` (``"2GiB"`` or bytes), ``timeout`` (``"30m"`` or seconds, for
        one element), ``gpus``, ``shm`` (size of ``/dev/shm``), ``env`` (plain variables, never
        secrets: they are visible to whoever can see the job).
    Image
        ``packages`` (requirements to add, which must be installed here), ``modules`` (local modules
        to add), ``files`` (data files and directories), ``requirements`` (a ``requirements.txt`` or
        ``pylock.toml`` that is obeyed), ``lock`` (a lock file of ``cxc lock``, by which the image is
        built, else it is an error), ``whole_environment`` (all that is installed), ``base`` (an
        image reference, or a path of a Dockerfile), ``python`` (where the base has its Python, if its
        environment does not say), ``allow_secrets``.
    Runs
        ``on`` (a target of clustrix.yml), ``max_parallel`` (elements at once), ``retries`` (how often
        an element that fails runs again), ``registry`` (the repository that images are pushed to).
    One type of cluster alone
        A keyword with that type's name and a mapping, as in ``kubernetes={"queue": "gpu"}``; the
        cluster checks it. A run on a target of another type ignores it. Kept in ``clusters``.
    """

    cpus: float | None = None
    memory: str | int | None = None
    timeout: str | float | None = None
    gpus: int = 0
    shm: str | int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    files: tuple[str | Path, ...] = ()
    requirements: str | Path | None = None
    lock: str | Path | None = None
    whole_environment: bool = False
    base: str | None = None
    python: str | None = None
    allow_secrets: bool = False
    on: str | None = None
    max_parallel: int | None = None
    retries: int = 0
    registry: str | None = None
    clusters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def but(self, **changes: Any) -> Options:
        """These options with some replaced; ConfigError for an unknown name."""
        known = {item.name for item in fields(self)} - {"clusters"}
        clusters = dict(self.clusters)
        for name in [name for name in changes if name not in known]:
            value = changes.pop(name)
            if not isinstance(value, Mapping):
                raise _unknown(name, known)
            clusters[name] = {**clusters.get(name, {}), **value}
        changes["clusters"] = clusters
        for name in ("packages", "modules", "files"):
            if name in changes:
                value = changes[name]
                changes[name] = (value,) if isinstance(value, str | os.PathLike) else tuple(value)
        options = replace(self, **changes)
        options.resources(Resources())
        return options

    def resources(self, default: Resources) -> Resources:
        """The resources requested; what is not given is as in ``default``."""
        # Imported late: decorating a function must cost next to nothing.
        from .quantities import RESOURCES, parse_resource

        if not isinstance(self.retries, int) or not 0 <= self.retries <= 100:
            raise ConfigError(f"retries must be 0 to 100, not {self.retries!r}", key="retries")
        if self.max_parallel is not None and self.max_parallel < 1:
            raise ConfigError(
                f"max_parallel must be at least 1, not {self.max_parallel!r}", key="max_parallel"
            )
        given = {name: getattr(self, name) for name in RESOURCES}
        found = {
            name: parse_resource(name, value) for name, value in given.items() if value is not None
        }
        found["gpus"] = found.get("gpus") or default.gpus
        found["env"] = {**default.env, **found.get("env", {})}
        return replace(default, **found)


def _unknown(name: str, known: Collection[str]) -> ConfigError:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Options are: {', '.join(sorted(known))}."
    return ConfigError(f"unknown option {name!r}", hint=hint, key=name)
