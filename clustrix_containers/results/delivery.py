"""Outcomes as a worker delivers them: in a termination message, or in a stream.

The formats are those of :mod:`clustrix_containers.worker.contract`. A container may have written
anything into either.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from clustrix_containers.errors import ResultError, ResultLost
from clustrix_containers.worker.contract import FAILED, INLINE, MESSAGE_LIMIT, PACKED_LIMIT, STORED

from .directory import arrive
from .outcome import MARK_LIMIT, Expected, Mark, parse_mark

StoreKind = Literal["hold", "s3", "registry", "volume"]

_NAME = r"\d+\.\d+\.[0-9a-f]{16}"


@dataclass(frozen=True, slots=True)
class Inline:
    """The outcome itself: not verified yet. ``result`` is None if there is no file of it."""

    mark: bytes
    result: bytes | None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the outcome is: its names in the store of this ``kind``.

    ``manifest``: the digest of a registry's artifact.
    """

    kind: StoreKind
    mark: str
    result: str | None
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The worker has an outcome and could not deliver it; ``reason`` is a sentence."""

    reason: str


class StreamEnded(ResultError):
    """A stream that ended before the whole outcome had arrived: it may be tried again."""


class Absent(ResultError):
    """There is no such outcome at the other end, or not yet."""


def read(message: str) -> Inline | Stored | Undelivered:
    """Parse a termination message; ``ResultError`` if our worker did not write it."""
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


def read_outcome(message: str, expected: Expected) -> Inline | Stored:
    """As :func:`read`; ``ResultLost`` if the worker could not deliver its outcome."""
    found = read(message)
    if isinstance(found, Undelivered):
        text = f"element {expected.element}: its result was not delivered: {found.reason}"
        raise ResultLost(text, run=expected.run, element=expected.element)
    return found


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
            kind in get_args(StoreKind)
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
    """Foreign text without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text[:length]).strip()


def put(expected: Expected, outcome: Inline) -> Mark:
    """Write an outcome's files into the run's directory; see :func:`.directory.arrive`."""
    pieces = [outcome.result] if outcome.result else []
    return arrive(expected, outcome.mark, lambda _mark: pieces)


def receive(stream: Iterable[bytes], expected: Expected) -> Mark:
    """Store what ``deliver.py give`` writes as it arrives; the mark that counts.

    ``stream`` yields pieces of any size; no more are read once the outcome is complete, so the
    other end may stay open. :class:`StreamEnded` if it ends too early, :class:`Absent` if there
    is no outcome.
    """
    reader = _Reader(stream, expected.element)
    size = int.from_bytes(reader.exactly(4), "little")
    if size == 0:
        raise Absent(
            f"the outcome of element {expected.element} is not there", element=expected.element
        )
    if size > MARK_LIMIT:
        raise ResultError(
            f"the stream for element {expected.element} is not an outcome",
            element=expected.element,
        )
    data = reader.exactly(size)
    arriving = parse_mark(data, expected)
    counts = arrive(expected, data, reader.result)
    if not reader.read_result:
        # Another is here already; the other end still has to send all of this one.
        for _ in reader.result(arriving):
            pass
    return counts


class _Reader:
    """Pieces of a stream, cut to the requested sizes."""

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
                    f"the outcome of element {self._element} broke off in transit",
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
                f"the stream for element {self._element} is longer than what its worker wrote",
                element=self._element,
            )
