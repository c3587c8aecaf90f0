"""A run's directory on this machine: outcomes that arrive in it, and how they are taken out.

``results/`` in it may be written to by the container (the local target, HPC sites), or outcomes
arrive there over a network. What is taken from there is moved into ``outcomes/``, which is the
client's own, and verified there.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from clustrix_containers.errors import ResultError, ResultLost
from clustrix_containers.storage import atomic, untrusted
from clustrix_containers.storage.locks import locked

from .outcome import MARK_LIMIT, Expected, Mark, Outcome, parse_mark

OpenResult = Callable[[Mark], Iterable[bytes]]
"""The result's bytes in pieces, for a verified mark that has a result."""


def arrive(expected: Expected, data: bytes, open_result: OpenResult) -> Mark:
    """Write a result and then its mark (``data``) into ``results/``; the mark that counts.

    The first valid mark wins: if there is one, it stays, and ``open_result`` is only called if
    that one is ``data`` and its file was lost. Nothing is written before the mark is verified.
    ``ResultError`` if mark or result are not what this run's worker wrote. Several threads and
    processes may do this at once.
    """
    mark = parse_mark(data, expected)
    expected.mark.parent.mkdir(mode=0o700, exist_ok=True)
    present = _present(expected)
    if present is not None and present != mark:
        return present
    if mark.sha256 and not _has_result(expected, mark):
        # Its name is that of its contents: who else writes it at the same time writes the same.
        path = expected.mark.with_name(mark.result_name)
        with atomic.replacing(path, durable=True) as file:
            for piece in _checked(open_result(mark), mark):
                file.write(piece)
    with locked(expected.directory / ".arriving"):
        present = _present(expected)
        if present is None:
            atomic.write(expected.mark, data, durable=True)
    return present or mark


def arrived(expected: Expected) -> bool:
    """Whether a valid mark, and the result that it names, are in the directory already."""
    mark = _present(expected)
    return mark is not None and (not mark.sha256 or _has_result(expected, mark))


def collect(expected: Expected) -> Outcome | None:
    """Take an element's outcome out of a run's directory; ``None`` while there is no mark.

    The result file is moved into ``outcomes/`` and its size and sha256 are verified there.
    Collecting again gives the same. ``ResultLost`` if the file is gone, ``ResultError`` if
    mark or file are not what this run's worker wrote.
    """
    mark = _read_mark(expected)
    if mark is None:
        return None
    if not mark.sha256:
        return Outcome(mark, None)
    own = expected.directory / "outcomes" / mark.result_name
    _move(expected.mark.with_name(mark.result_name), own, mark)
    for _ in _checked(untrusted.pieces(own), mark):
        pass
    return Outcome(mark, own)


def _read_mark(expected: Expected) -> Mark | None:
    try:
        data = untrusted.read(expected.mark, MARK_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultError(f"the completion mark {expected.mark} cannot be read: {error}") from error
    return parse_mark(data, expected)


def _present(expected: Expected) -> Mark | None:
    """The valid mark that has arrived; one that is not valid does not count."""
    with contextlib.suppress(ResultError):
        return _read_mark(expected)
    return None


def _has_result(expected: Expected, mark: Mark) -> bool:
    places = (expected.directory / part / mark.result_name for part in ("results", "outcomes"))
    return any(_size(place) == mark.size for place in places)


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
            f"the result of element {mark.element} is not what its worker wrote",
            hint=f"Its size or sha256 differ from the mark's, which has {mark.size:,} bytes.",
            element=mark.element,
        )


def _move(source: Path, own: Path, mark: Mark) -> None:
    """Move the result out of the container's reach; another client may do the same right now."""
    own.parent.mkdir(mode=0o700, exist_ok=True)
    if _size(own) == mark.size:
        return
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            raise ResultError(f"the result of element {mark.element} is not a regular file")
        source.replace(own)
    except FileNotFoundError:
        if not own.exists():
            raise ResultLost(
                f"the result of element {mark.element} no longer exists",
                hint=f"{source} was removed after the worker wrote it.",
                element=mark.element,
            ) from None
