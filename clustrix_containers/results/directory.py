"""Results in a directory that client and worker share: the local target, and HPC sites.

``results/`` in the task's directory may be written to by the container. What is taken from
there is moved into ``outcomes/``, which is the client's own, and verified there.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from clustrix_containers.errors import ResultError, ResultLost

from .outcome import MARK_LIMIT, Mark, Outcome, parse_mark

_MARK = re.compile(r"(\d+)\.(\d+)\.mark")


def read_mark(path: Path, *, key: bytes, run: str, element: int, attempt: int) -> Mark | None:
    """The verified mark at ``path``, or ``None`` if there is none.

    ``ResultError`` if it was not written by this run's worker.
    """
    try:
        with open(path, "rb", opener=_no_follow) as file:
            data = file.read(MARK_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultError(f"the completion mark {path} cannot be read: {error}") from error
    return parse_mark(data, key=key, run=run, element=element, attempt=attempt)


def marked(directory: Path, attempt: int) -> Iterator[int]:
    """Elements that have a mark (not verified yet), by listing: ``exists`` lies on shared file systems."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory / "results") as entries:
        for entry in entries:
            match = _MARK.fullmatch(entry.name)
            if match and int(match[2]) == attempt:
                yield int(match[1])


def collect(directory: Path, element: int, attempt: int, key: bytes, *, run: str) -> Outcome | None:
    """Take an element's outcome out of a task's directory; ``None`` while there is no mark.

    The result file is moved into ``outcomes/`` and its size and sha256 are verified there.
    Collecting again gives the same. ``ResultLost`` if the file is gone, ``ResultError`` if
    mark or file are not what this run's worker wrote.
    """
    name = f"{element}.{attempt}"
    mark = read_mark(
        directory / "results" / f"{name}.mark", key=key, run=run, element=element, attempt=attempt
    )
    if mark is None:
        return None
    if not mark.sha256:
        return Outcome(mark, None)
    _check_hex(mark)
    name = f"{name}.{mark.sha256[:16]}.result"
    own = directory / "outcomes" / name
    _take(directory / "results" / name, own, mark)
    _verify(own, mark)
    return Outcome(mark, own)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _check_hex(mark: Mark) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", mark.sha256):
        raise ResultError(f"the mark of element {mark.element} has no valid sha256")


def _take(source: Path, own: Path, mark: Mark) -> None:
    """Move the result out of the container's reach; another client may do the same right now."""
    own.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        if own.lstat().st_size == mark.size:
            return
    except FileNotFoundError:
        pass
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            raise ResultError(f"the result of element {mark.element} is not a regular file")
        source.replace(own)
    except FileNotFoundError:
        if not own.exists():
            raise ResultLost(
                f"the result of element {mark.element} is not there any more",
                hint=f"{source} was removed after the worker wrote it.",
                element=mark.element,
            ) from None


def _verify(path: Path, mark: Mark) -> None:
    digest = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(max(1, min(mark.size, 1 << 20))))
    with open(path, "rb", buffering=0, opener=_no_follow) as file:
        while count := file.readinto(buffer):
            size += count
            digest.update(buffer[:count])
    if size != mark.size or not hmac.compare_digest(digest.hexdigest(), mark.sha256):
        raise ResultError(
            f"the result of element {mark.element} is not the one that its worker wrote",
            hint=f"{path} has {size} bytes; size or sha256 differ from the mark's.",
            element=mark.element,
            path=str(path),
        )
