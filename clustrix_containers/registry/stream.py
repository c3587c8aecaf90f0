"""A stream that is what its digest says, or an error before its last byte is handed out."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from clustrix_containers.errors import DigestMismatch
from clustrix_containers.oci.model import Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 20


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class VerifiedReader(io.RawIOBase):
    """Reads a blob and checks its size and digest.

    The block that holds the last byte is given out only after the check, so whoever
    reads exactly ``descriptor.size`` bytes and stops has verified bytes too.
    """

    def __init__(
        self,
        source: Readable,
        descriptor: Descriptor,
        where: str,
        on_mismatch: Callable[[], None] | None = None,
    ) -> None:
        self._source = source
        self._descriptor = descriptor
        self._where = where
        self._on_mismatch = on_mismatch
        self._left = descriptor.size
        self._hash = hashlib.sha256()
        self._checked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._left == 0:
            self._check()
            return 0
        data = self._source.read(min(len(view), self._left))
        if not data:
            self._fail(f"ends {self._left:,} bytes early")
        self._hash.update(data)
        self._left -= len(data)
        if self._left == 0:
            self._check()
        view[: len(data)] = data
        return len(data)

    def _check(self) -> None:
        if self._checked:
            return
        if self._source.read(1):
            self._fail(f"is longer than {self._descriptor.size:,} bytes")
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            self._fail(f"has the digest {found}")
        self._checked = True

    def _fail(self, why: str) -> None:
        if self._on_mismatch is not None:
            self._on_mismatch()
        raise DigestMismatch(
            f"blob {self._descriptor.digest} ({self._descriptor.size:,} bytes) from {self._where} {why}",
            digest=self._descriptor.digest,
        )

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def verified(
    source: Readable,
    descriptor: Descriptor,
    where: str,
    on_mismatch: Callable[[], None] | None = None,
) -> BinaryIO:
    """``source`` as a buffered stream that raises DigestMismatch instead of ending wrong."""
    reader = VerifiedReader(source, descriptor, where, on_mismatch)
    return cast("BinaryIO", io.BufferedReader(reader, BLOCK))
