"""The gzip forms of a layer (RFC 1952 around RFC 1951); the bytes depend on the input only.

``stored``
    One member of uncompressed deflate blocks. For small layers: without a compressor no drift.
``spliced``
    Many members: literal bytes (tar headers, padding) as stored members, and existing deflate
    streams (a wheel's) as members of their own. No compressor either.
``isal``
    One member, compressed by ISA-L at a fixed level in fixed pieces. For what has no wheel.

Headers have no time, no name, and 255 ("unknown") as the operating system.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any

from .store import BlobWriter

_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_BLOCK = 0xFFFF
_LITERAL = 1 << 20
_PIECE = 1 << 18
_LEVEL = 2


class _OneMember:
    """A single gzip member; ``_compress`` writes what is complete of ``_pending``."""

    _crc32: Any = staticmethod(zlib.crc32)

    def __init__(self, out: BlobWriter) -> None:
        self._out = out
        self._pending = bytearray()
        self._crc = self._size = 0
        out.write(_HEADER)

    def write(self, data: bytes) -> None:
        self._crc = self._crc32(data, self._crc)
        self._size += len(data)
        self._pending += data
        self._compress()

    def _compress(self) -> None:
        raise NotImplementedError


class Stored(_OneMember):
    """One member of stored blocks, which do not depend on how the input is split."""

    def _compress(self) -> None:
        # The last block is held back: it carries the mark of the last.
        whole = (len(self._pending) - 1) // _BLOCK * _BLOCK
        if whole > 0:
            self._out.write(_blocks(bytes(self._pending[:whole]), last=False))
            del self._pending[:whole]

    def close(self) -> None:
        self._out.write(_blocks(bytes(self._pending), last=True) + _trailer(self._crc, self._size))


class Spliced:
    """Literal bytes as stored members, existing deflate streams as members of their own."""

    def __init__(self, out: BlobWriter) -> None:
        self._out = out
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= _LITERAL:
            self._literal(_LITERAL)

    def member(self, raw: Iterable[bytes], crc: int, size: int) -> None:
        """A raw deflate stream, unchanged; ``crc`` and ``size`` are of what it inflates to."""
        self.close()
        self._out.write(_HEADER)
        for piece in raw:
            self._out.write(piece)
        self._out.write(_trailer(crc, size))

    def close(self) -> None:
        if self._pending:
            self._literal(len(self._pending))

    def _literal(self, size: int) -> None:
        data = bytes(self._pending[:size])
        del self._pending[:size]
        self._out.write(_HEADER + _blocks(data, last=True) + _trailer(zlib.crc32(data), size))


class Isal(_OneMember):
    """One member by ISA-L, in pieces of one size, since its output depends on them."""

    def __init__(self, out: BlobWriter) -> None:
        from isal import isal_zlib

        super().__init__(out)
        self._compressor: Any = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -15)
        self._crc32 = isal_zlib.crc32

    def _compress(self) -> None:
        whole = len(self._pending) // _PIECE * _PIECE
        view = memoryview(bytes(self._pending[:whole]))
        del self._pending[:whole]
        for at in range(0, whole, _PIECE):
            self._out.write(self._compressor.compress(view[at : at + _PIECE]))

    def close(self) -> None:
        self._out.write(self._compressor.compress(bytes(self._pending)))
        self._out.write(self._compressor.flush())
        self._out.write(_trailer(self._crc, self._size))


def _blocks(data: bytes, *, last: bool) -> bytes:
    """Stored deflate blocks, at least one; ``last`` says whether they end the stream."""
    pieces = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)] or [b""]
    ends = [False] * (len(pieces) - 1) + [last]
    return b"".join(
        struct.pack("<BHH", end, len(piece), len(piece) ^ 0xFFFF) + piece
        for piece, end in zip(pieces, ends, strict=True)
    )


def _trailer(crc: int, size: int) -> bytes:
    return struct.pack("<II", crc, size & 0xFFFFFFFF)
