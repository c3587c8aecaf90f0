"""Data that travels: what lies in the reached packages, and what the user names with ``files=``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from clustrix_containers.errors import CaptureError

from .bundle import File
from .compiled import is_extension
from .modules import absolute
from .secrets import environment, locate_secret

LIMIT = 256 << 20
"""Bytes of all data files together."""

_SCANNED = 64 << 20
_NOT_DATA = {"__pycache__", "CVS", "node_modules"}
_CODE = (".py", ".pyi", ".pyx", ".pxd", ".pyc", ".pyo", ".pyd")
_KEY_NAMES = {"id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"}
_KEY_SUFFIXES = (".key", ".p12", ".pfx", ".jks", ".keystore", ".ppk")
_SECRET_FILES = {".netrc", ".pypirc", ".pgpass", ".git-credentials", ".htpasswd"}


def secret_name(path: Path) -> str | None:
    """Why a file of this name never travels, or ``None``."""
    name = path.name
    if name == ".env" or name.startswith(".env.") or name.endswith(".env"):
        return "environment files hold secrets"
    if name in _KEY_NAMES or name.endswith(_KEY_SUFFIXES):
        return "it is named like a private key"
    if name in _SECRET_FILES:
        return "it holds credentials"
    if ".git" in path.parts or ".hg" in path.parts or ".svn" in path.parts:
        return "it belongs to a version control system"
    return None


def of_package(directory: Path, path: str, reason: str, *, deep: bool = True) -> Iterator[File]:
    """The files of one package's directory that are not Python source, as ``path``/….

    Not those of packages below it, hidden ones, keys and caches; ``deep=False`` leaves out
    all directories below (for a namespace package, which may be anything).
    """
    for found in _walk(directory, nested_packages=False, deep=deep):
        name = found.name
        if name.startswith(".") or name.endswith(_CODE) or secret_name(Path(name)):
            continue
        if is_extension(found) and name.count(".") > 1:
            # Extension modules travel when they are imported.
            continue
        yield File(f"{path}/{found.relative_to(directory).as_posix()}", found, reason)


def sources_of_package(directory: Path) -> Iterator[Path]:
    """Every Python file below a package's directory."""
    for found in _walk(directory, nested_packages=True, deep=True):
        if found.suffix == ".py":
            yield found


def _walk(directory: Path, *, nested_packages: bool, deep: bool) -> Iterator[Path]:
    seen = set()
    for here, folders, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        kept = [] if not deep else sorted(folders)
        folders[:] = [f for f in kept if _enters(Path(here) / f, nested_packages)]
        for name in sorted(names):
            found = Path(here) / name
            if _regular(found):
                yield found


def _enters(directory: Path, nested_packages: bool) -> bool:
    name = directory.name
    if name.startswith(".") or name in _NOT_DATA or name.endswith((".egg-info", ".dist-info")):
        return False
    if (directory / "pyvenv.cfg").exists():
        return False
    return nested_packages or not (directory / "__init__.py").exists()


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def named(files: Iterable[str | Path], root: Path | None) -> Iterator[File]:
    """What the user names with ``files=``: a file, or a directory and all that is in it.

    It goes to the same place relative to the code root as it has relative to ``root`` (the
    function's project), else to the working directory, else under its own name.
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
        place = _place(path, root)
        reason = f"files= names {item!s}"
        if not path.is_dir():
            yield _named_file(path, place, reason)
            continue
        for here, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if f not in (".git", ".hg", ".svn", *_NOT_DATA))
            for name in sorted(names):
                found = Path(here) / name
                inner = found.relative_to(path).as_posix()
                yield _named_file(found, f"{place}/{inner}" if place else inner, reason)


def _named_file(path: Path, place: str, reason: str) -> File:
    why = secret_name(path)
    if why is None and place.split("/")[0] == ".clustrix":
        why = ".clustrix is this project's own directory in an image"
    if why is not None:
        raise CaptureError(
            f"{path} must not go into an image: {why}",
            hint="Name the files that the function needs, one by one; give secrets to the "
            "function as environment variables of the run.",
            path=str(path),
        )
    if not _regular(path):
        raise CaptureError(
            f"files= names {path}, which is neither a file nor a directory", path=str(path)
        )
    return File(place, path, reason)


def _place(path: Path, root: Path | None) -> str:
    for base in (root, Path.cwd()):
        if base is not None and path.is_relative_to(base):
            relative = path.relative_to(base).as_posix()
            return "" if relative == "." else relative
    return path.name


def check(files: Iterable[File], *, allow_secrets: bool) -> None:
    """Raise a CaptureError if the data files are too many bytes, or one holds a secret."""
    sizes = {}
    for file in files:
        if isinstance(file.content, Path):
            sizes[file.path] = (file.content.stat().st_size, file)
    total = sum(size for size, _ in sizes.values())
    if total > LIMIT:
        biggest = sorted(sizes.items(), key=lambda item: (-item[1][0], item[0]))[:3]
        listed = ", ".join(f"{path} ({size >> 20} MiB)" for path, (size, _) in biggest)
        raise CaptureError(
            f"the data files beside the code are {total >> 20} MiB, more than "
            f"{LIMIT >> 20} MiB; the biggest: {listed}",
            hint="Move them out of the package's directory and read them from storage, "
            "or bake them into a base image.",
            total=total,
        )
    if allow_secrets:
        return
    for size, file in sizes.values():
        if size <= _SCANNED and isinstance(file.content, Path):
            _refuse_secret_in(file.content)


_clean: set[tuple[str, int, int, int, int]] = set()


def _refuse_secret_in(path: Path) -> None:
    """As :func:`refuse_secret`, but a file that was clean and has not changed is not read again."""
    status = path.stat()
    key = (str(path), status.st_ino, status.st_mtime_ns, status.st_size, hash(environment()))
    if key not in _clean:
        refuse_secret(path.read_bytes(), str(path))
        _clean.add(key)


def refuse_secret(content: bytes, name: str) -> None:
    """Raise a CaptureError naming ``name`` and the line if there is a secret in ``content``."""
    found = locate_secret(content)
    if found is not None:
        kind, at = found
        line = content.count(b"\n", 0, at) + 1
        raise CaptureError(
            f"{name}:{line} holds {kind}, and an image can be read by whoever can pull it",
            hint="Read it from the environment when the function runs. If it is no secret, "
            "say allow_secrets=True.",
            path=name,
            line=line,
            kind=kind,
        )
