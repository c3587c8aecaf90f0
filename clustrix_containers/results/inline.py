"""What a container's termination message says of its outcome, and outcomes that come in a stream.

Messages are those of :mod:`clustrix_containers.worker.contract`; a container may have written anything
into them.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clustrix_containers.errors import ResultError
from clustrix_containers.worker.contract import FAILED, INLINE, MESSAGE_LIMIT, PACKED_LIMIT, STORED

from .arrival import arrive
from .outcome import MARK_LIMIT, Mark, parse_mark

Kind = Literal["hold", "s3", "registry", "volume"]

_NAME = r"\d+\.\d+\.[0-9a-f]{16}"


@dataclass(frozen=True, slots=True)
class Inline:
    """The outcome itself: not verified yet. ``result`` is None if there is no file of it."""

    mark: bytes
    result: bytes | None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the outcome lies: the names in the store of this ``kind``.

    ``manifest``: the digest of a registry's artifact.
    """

    kind: Kind
    mark: str
    result: str | None
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The worker has an outcome and could not get rid of it; ``reason`` is a sentence."""

    reason: str


class StreamEnded(ResultError):
    """A stream that ended before the whole outcome had come: ask for it again."""


class Absent(ResultError):
    """There is no such outcome where the stream comes from, or not yet."""


def read(message: str) -> Inline | Stored | Undelivered:
    """What a termination message says; ``ResultError`` if it is none of our worker's."""
    kind, rest = message[:4], message[4:].strip()
    if kind == INLINE:
        return _unpack(rest)
    if kind == STORED:
        return _stored(rest)
    if kind == FAILED:
        return Undelivered(_plain(rest, MESSAGE_LIMIT))
    raise ResultError(
        f"the termination message was not written by our worker: {_plain(message, 200)!r}"
    )


def _unpack(text: str) -> Inline:
    limit = PACKED_LIMIT * MESSAGE_LIMIT + 4
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b85decode(text), limit + 1)
        whole = unpacking.eof and not unpacking.unused_data
    except (ValueError, zlib.error) as error:
        raise ResultError("the outcome in the termination message is damaged") from error
    size = int.from_bytes(data[:4], "little")
    if not whole or len(data) > limit or len(data) < 4 + size:
        raise ResultError("the outcome in the termination message is cut off or too large")
    return Inline(data[4 : 4 + size], data[4 + size :] or None)


def _stored(text: str) -> Stored:
    try:
        value = json.loads(text)
        kind, mark, result = value["store"], value["mark"], value["result"]
        manifest = value.get("manifest")
        good = (
            kind in ("hold", "s3", "registry", "volume")
            and re.fullmatch(rf"{_NAME}\.mark", mark)
            and (result is None or re.fullmatch(rf"{_NAME}\.result", result))
            and (kind != "registry" or re.fullmatch("sha256:[0-9a-f]{64}", manifest))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ResultError(f"the termination message names no outcome: {_plain(text, 200)!r}")
    return Stored(kind, mark, result, manifest if kind == "registry" else None)


def _plain(text: str, length: int) -> str:
    """Text of a stranger's without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text[:length]).strip()


def put(
    directory: Path,
    element: int,
    attempt: int,
    mark: bytes,
    result: bytes | None,
    *,
    key: bytes,
    run: str,
) -> Mark:
    """Write an outcome's files below ``directory``, as :func:`.directory.collect` wants them.

    Returns the mark that counts: the first valid one stays. ``ResultError`` if mark or result
    are not what this run's worker wrote; then nothing is written.
    """
    pieces = [result] if result else []
    return arrive(directory, element, attempt, mark, lambda _mark: pieces, key=key, run=run)


def receive(
    stream: Iterable[bytes], directory: Path, element: int, attempt: int, *, key: bytes, run: str
) -> Mark:
    """Store what ``deliver.py give`` writes, as it comes; the mark that counts.

    ``stream`` yields pieces of any size; no more are asked for once the outcome is there, so
    what it comes from may stay open. :class:`StreamEnded` if it ends too early, :class:`Absent`
    if it says that there is none.
    """
    reader = _Reader(stream, element)
    size = int.from_bytes(reader.exactly(4), "little")
    if size == 0:
        raise Absent(f"the outcome of element {element} is not there", element=element)
    if size > MARK_LIMIT:
        raise ResultError(f"what came for element {element} is no outcome", element=element)
    data = reader.exactly(size)
    come = parse_mark(data, key=key, run=run, element=element, attempt=attempt)
    counts = arrive(directory, element, attempt, data, reader.result, key=key, run=run)
    if not reader.read_result:
        # Another is here already; the other side still wants to be rid of this one.
        for _ in reader.result(come):
            pass
    return counts


class _Reader:
    """Pieces of a stream, cut to the sizes that are asked for."""

    def __init__(self, stream: Iterable[bytes], element: int) -> None:
        self._pieces = iter(stream)
        self._left = b""
        self._element = element
        self.read_result = False

    def pieces(self, size: int) -> Iterator[bytes]:
        while size:
            while not self._left and (piece := next(self._pieces, None)) is not None:
                self._left = piece
            if not self._left:
                raise StreamEnded(
                    f"the outcome of element {self._element} broke off on its way",
                    element=self._element,
                )
            piece, self._left = self._left[:size], self._left[size:]
            size -= len(piece)
            yield piece

    def exactly(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def result(self, mark: Mark) -> Iterator[bytes]:
        self.read_result = True
        yield from self.pieces(mark.size)
        if self._left:
            raise ResultError(
                f"more came for element {self._element} than its worker wrote",
                element=self._element,
            )
