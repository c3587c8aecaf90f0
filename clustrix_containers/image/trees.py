"""What has no wheel is packed from its installed files: their actual bytes, with a new RECORD.

Scripts are made again from the entry points, or get the image's shebang; what names this machine
(``direct_url.json``, editable finders, bytecode) is left out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, arrange
from clustrix_containers.packages.installed import Installed, search_path
from clustrix_containers.packages.lock import INSTALLER_FILES, has_shebang
from clustrix_containers.packages.wheels.wheel import (
    INSTALLER,
    record_entry,
    script_entries,
    site_packages,
    with_shebang,
)
from clustrix_containers.worker.contract import VENV


def find_installed(name: str, version: str, path: Sequence[str] | None = None) -> Installed:
    """The installed distribution of this name and version; ImageError if there is none."""
    installed = search_path(path).by_name.get(canonicalize_name(name))
    if installed is None or installed.version != version:
        other = f"; {installed.version} is" if installed else ""
        raise ImageError(
            f"{name} {version} of the lock is not installed here{other}",
            hint=f"pip install {name}=={version}, or lock again.",
            distribution=name,
        )
    return installed


def packed_files(installed: Installed) -> list[tuple[str, Path]]:
    """The files that go in, sorted: path relative to site-packages (``..`` for scripts and data).

    ImageError: a file is missing, or the distribution's files are not known.
    """
    found = []
    for name in sorted(installed.rows):
        if _is_left_out(name):
            continue
        path = installed.root / name
        if path.is_file():
            found.append((name, path))
        elif not name.startswith(".."):
            raise ImageError(
                f"{installed} is incomplete: {name!r} is missing",
                hint=f"pip install --force-reinstall {installed.name}=={installed.version}",
                distribution=installed.name,
            )
    if not installed.recorded and not installed.tops:
        raise ImageError(
            f"{installed} has no list of its files",
            hint=f"Install it with pip: pip install {installed.name}=={installed.version}",
            distribution=installed.name,
        )
    return found


def fingerprint(installed: Installed) -> str:
    """A value that changes when a file of it changes here: over sizes, times and inodes."""
    seen = hashlib.sha256()
    for name, path in packed_files(installed):
        stat = path.stat()
        seen.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode())
    return seen.hexdigest()


def tree_entries(installed: Installed, python: str) -> list[Entry]:
    """What an installed distribution puts into ``/opt/venv`` of a Python ``X.Y``."""
    site = site_packages(python)
    entries = list(script_entries(installed.read_text("entry_points.txt")))
    generated = {entry.name for entry in entries}
    for name, path in packed_files(installed):
        target = _target(name, site)
        if target is None or target in generated:
            continue
        content: bytes | Path = path
        if target.startswith(f"{VENV[1:]}/bin/") and has_shebang(path):
            content = with_shebang(path.read_bytes())
        entries.append(Entry(target, content, 0o755 if os.access(path, os.X_OK) else 0o644))
    if not installed.info.is_dir():
        return arrange(entries, owned=())
    info = f"{site}/{installed.info.name}"
    entries.append(Entry(f"{info}/INSTALLER", INSTALLER))
    entries = arrange(entries, owned=())
    if installed.info.suffix == ".dist-info":
        entries.append(record_entry(info, entries, site))
    return entries


def _is_left_out(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if file in INSTALLER_FILES and folder.endswith(".dist-info"):
        return True
    return (
        file.startswith("__editable__") or file.endswith((".pyc", ".pyo")) or "__pycache__" in name
    )


def _target(name: str, site: str) -> str | None:
    """Where a file goes; ``None`` for one that is outside the environment it was installed into."""
    normal = os.path.normpath(name)
    if not normal.startswith(".."):
        return None if os.path.isabs(normal) else f"{site}/{normal}"  # noqa: PTH117
    # ../../../bin/x of lib/pythonX.Y/site-packages, ../../../usr/bin/x elsewhere: below the prefix.
    parts = normal.split("/")
    rest = [part for part in parts if part != ".."]
    if rest[0] not in ("bin", "share", "etc", "include", "man", "local"):
        return None
    return f"{VENV[1:]}/{'/'.join(rest)}"
