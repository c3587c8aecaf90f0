"""The directories of this user: cache, data and state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.errors import ConfigError

APP = "clustrix-containers"


@dataclass(frozen=True, slots=True)
class Paths:
    """``cache`` can be recreated, ``data`` (images) cannot, ``state`` is about runs."""

    cache: Path
    data: Path
    state: Path


def paths() -> Paths:
    """The user's directories, created with mode 0700 if they do not exist.

    ``CLUSTRIX_CACHE_DIR``, ``CLUSTRIX_DATA_DIR`` and ``CLUSTRIX_STATE_DIR`` override the
    platform's. ConfigError names the variable of one that cannot be created.
    """
    return Paths(_directory("cache"), _directory("data"), _directory("state"))


def _directory(kind: str) -> Path:
    variable = f"CLUSTRIX_{kind.upper()}_DIR"
    value = os.environ.get(variable)
    if not value:
        import platformdirs

        value = getattr(platformdirs, f"user_{kind}_dir")(APP)
    path = Path(value).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create the directory {path}: {error.strerror}",
            hint=f"Set {variable} to another one.",
            path=str(path),
            key=variable,
        ) from error
    return path
