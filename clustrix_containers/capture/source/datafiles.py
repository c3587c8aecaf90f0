"""Files that travel beside the code: package data, ``files=``, and metadata of editable installs.

Editable installs: https://packaging.python.org/en/latest/specifications/direct-url/
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clustrix_containers.capture.bundle import File
from clustrix_containers.capture.secrets import refuse_secret_in, secret_name
from clustrix_containers.errors import CaptureError

from .modules import Module, absolute, is_extension

LIMIT = 256 << 20
"""Bytes of all data files together."""

_SCANNED = 64 << 20
_VCS = {".git", ".hg", ".svn"}
_NOT_DATA = {"__pycache__", "CVS", "node_modules"}
_CODE = (".py", ".pyi", ".pyx", ".pxd", ".pyc", ".pyo", ".pyd")
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")


def package_data(directory: Path, path: str, reason: str, *, deep: bool = True) -> Iterator[File]:
    """The files of one package's directory that are not Python source, as ``path``/….

    Not those of packages below it, hidden ones, keys and caches; ``deep=False`` leaves out
    all directories below (for a namespace package, which may be anything).
    """
    for found in files_below(directory, nested_packages=False, deep=deep):
        name = found.name
        skipped = name.startswith(".") or name.endswith(_CODE) or secret_name(Path(name))
        # Extension modules travel when they are imported.
        if not skipped and not (is_extension(found) and name.count(".") > 1):
            yield File(f"{path}/{found.relative_to(directory).as_posix()}", found, reason)


def files_below(
    directory: Path, *, nested_packages: bool = True, deep: bool = True
) -> Iterator[Path]:
    """The files of a package's directory, without hidden directories, caches and environments."""
    seen = set()
    for here, folders, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        kept = sorted(folders) if deep else []
        folders[:] = [f for f in kept if _is_searched(Path(here) / f, nested_packages)]
        yield from (found for name in sorted(names) if os.path.isfile(found := Path(here) / name))  # noqa: PTH113


def _is_searched(directory: Path, nested_packages: bool) -> bool:
    name = directory.name
    if name.startswith(".") or name in _NOT_DATA or name.endswith((".egg-info", ".dist-info")):
        return False
    found = (directory / "pyvenv.cfg").exists()
    return not found and (nested_packages or not (directory / "__init__.py").exists())


def named_files(files: Iterable[str | Path], root: Path | None) -> Iterator[File]:
    """The files of ``files=``: single files, and directories with all that is in them.

    A file keeps its path relative to ``root`` (the function's project), else relative to the
    working directory, else only its name; that is its path below the code root.
    """
    for item in files:
        path = absolute(Path(item).expanduser())
        if not path.exists() and root is not None and not Path(item).is_absolute():
            path = absolute(root / item)
        if not path.exists():
            raise CaptureError(
                f"files= names {str(item)!r}, which does not exist",
                hint=f"Relative names start at the working directory, {Path.cwd()}.",
                path=str(path),
            )
        target = _path_in_image(path, root)
        reason = f"files= names {item!s}"
        if not path.is_dir():
            yield _named_file(path, target, reason)
            continue
        for here, folders, names in os.walk(path):
            folders[:] = sorted(set(folders) - _VCS - _NOT_DATA)
            for name in sorted(names):
                found = Path(here) / name
                yield _named_file(found, target / found.relative_to(path), reason)


def _named_file(path: Path, target: Path, reason: str) -> File:
    why = secret_name(path)
    if why is None and target.parts[0] == ".clustrix":
        why = ".clustrix is this project's own directory in an image"
    if why is not None:
        raise CaptureError(
            f"{path} must not go into an image: {why}",
            hint="List the files that the function needs one by one; pass secrets as "
            "environment variables of the run.",
            path=str(path),
        )
    if not os.path.isfile(path):  # noqa: PTH113
        raise CaptureError(
            f"files= names {path}, which is neither a file nor a directory", path=str(path)
        )
    return File(target.as_posix(), path, reason)


def _path_in_image(path: Path, root: Path | None) -> Path:
    for base in (root, Path.cwd()):
        if base is not None and path.is_relative_to(base):
            return path.relative_to(base)
    return Path(path.name)


def check(files: Iterable[File], *, allow_secrets: bool) -> None:
    """Raise a CaptureError if the data files exceed :data:`LIMIT`, or one holds a secret."""
    on_disk = [(file.path, file.content) for file in files if isinstance(file.content, Path)]
    sizes = [(content.stat().st_size, path, content) for path, content in on_disk]
    total = sum(size for size, _, _ in sizes)
    if total > LIMIT:
        biggest = sorted(sizes, key=lambda item: (-item[0], item[1]))[:3]
        listed = ", ".join(f"{path} ({size >> 20} MiB)" for size, path, _ in biggest)
        raise CaptureError(
            f"the data files beside the code are {total >> 20} MiB, more than "
            f"{LIMIT >> 20} MiB; the biggest: {listed}",
            hint="Move them out of the package's directory and read them from storage, "
            "or put them into a base image.",
            total=total,
        )
    if not allow_secrets:
        for size, _, content in sizes:
            if size <= _SCANNED:
                refuse_secret_in(content)


def editable_metadata(modules: list[Module]) -> Iterator[File]:
    """Metadata of the editable installs of local modules, for ``importlib.metadata``."""
    roots = [path.resolve() for module in modules for path in _locations(module)]
    if not roots:
        return
    for info, project in _editable_installs():
        if any(path.is_relative_to(project) for path in roots):
            yield from _metadata_files(info)
    tops = {module.name.partition(".")[0] for module in modules}
    # .egg-info beside top-level local modules (setup.py develop).
    tops_at = {
        path.parent
        for module in modules
        if "." not in module.name
        for path in (module.directories or _locations(module))
    }
    for info in sorted(info for root in tops_at for info in root.glob("*.egg-info")):
        names = info / "top_level.txt"
        if names.is_file() and tops & set(names.read_text("utf-8", "replace").split()):
            yield from _metadata_files(info)


def _locations(module: Module) -> tuple[Path, ...]:
    return (module.file,) if module.file is not None else module.directories


def _metadata_files(info: Path) -> Iterator[File]:
    for name in _METADATA:
        if (info / name).is_file():
            reason = f"metadata of the editable install {info.name}"
            yield File(f"{info.name}/{name}", (info / name).read_bytes(), reason)


def _editable_installs() -> Iterator[tuple[Path, Path]]:
    """``(dist-info, project directory)`` of every editable install on ``sys.path``."""
    for entry in dict.fromkeys(sys.path):
        for file in sorted(Path(entry).glob("*.dist-info/direct_url.json")):
            try:
                value = json.loads(file.read_text("utf-8"))
                location = urlsplit(value["url"])
                editable = value["dir_info"]["editable"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if editable and location.scheme == "file":
                yield file.parent, Path(os.path.realpath(unquote(location.path)))
