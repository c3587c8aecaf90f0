"""An outcome that came over a network, put where :func:`.directory.collect` finds it.

Nothing is written before the mark is verified, so nobody but the run's own worker can say how
much this machine stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from clustrix_containers.errors import ResultError

from .directory import read_mark
from .outcome import Mark, parse_mark

Open = Callable[[Mark], Iterable[bytes]]
"""The result's bytes in pieces, for a verified mark that has a result."""


def arrive(
    directory: Path,
    element: int,
    attempt: int,
    data: bytes,
    result: Open,
    *,
    key: bytes,
    run: str,
) -> Mark:
    """Write a result and then its mark (``data``) into ``directory/results``; the mark that counts.

    The first valid mark wins: if one is there, it stays, and ``result`` is only asked for if
    that one is ``data`` and its file has got lost. ``ResultError`` if mark or result are not
    what this run's worker wrote. Several processes may do this at once.
    """
    mark = parse_mark(data, key=key, run=run, element=element, attempt=attempt)
    if mark.sha256 and not re.fullmatch(r"[0-9a-f]{64}", mark.sha256):
        raise ResultError(f"the mark of element {element} has no valid sha256", element=element)
    results = directory / "results"
    results.mkdir(mode=0o700, exist_ok=True)
    path = results / f"{element}.{attempt}.mark"
    with _locked(results / f".{element}.{attempt}.arriving"):
        present = _present(path, key=key, run=run, element=element, attempt=attempt)
        if present is not None and present != mark:
            return present
        if mark.sha256 and not _has_result(directory, mark):
            name = f"{element}.{attempt}.{mark.sha256[:16]}.result"
            _write(results / name, _checked(result(mark), mark))
        if present is None:
            _write(path, [data])
    return mark


def arrived(directory: Path, element: int, attempt: int, *, key: bytes, run: str) -> bool:
    """Whether a valid mark, and the result that it tells of, are in ``directory`` already."""
    path = directory / "results" / f"{element}.{attempt}.mark"
    mark = _present(path, key=key, run=run, element=element, attempt=attempt)
    return mark is not None and (not mark.sha256 or _has_result(directory, mark))


def _has_result(directory: Path, mark: Mark) -> bool:
    name = f"{mark.element}.{mark.attempt}.{mark.sha256[:16]}.result"
    places = (directory / "results" / name, directory / "outcomes" / name)
    return any(_size(place) == mark.size for place in places)


def _present(path: Path, *, key: bytes, run: str, element: int, attempt: int) -> Mark | None:
    """The valid mark that is there already; one that is not valid does not count."""
    with contextlib.suppress(ResultError):
        return read_mark(path, key=key, run=run, element=element, attempt=attempt)
    return None


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def _checked(pieces: Iterable[bytes], mark: Mark) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        size += len(piece)
        if size > mark.size:
            break
        digest.update(piece)
        yield piece
    if size != mark.size or digest.hexdigest() != mark.sha256:
        raise ResultError(
            f"the result of element {mark.element} did not arrive as its worker wrote it",
            hint=f"Its size or sha256 differ from the mark's, which says {mark.size:,} bytes.",
            element=mark.element,
        )


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    # One name, so that what a killed process left is written over; the lock keeps others out.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path``, which is gone afterwards, against other threads and processes."""
    handle = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever had it before has removed it, and another may have made it anew.
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
