"""Layers as streams: the blob, the tar in it, its files."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, RawIOBase
from typing import IO, Any, cast

from clustrix_containers.errors import ImageError

from .model import Layer

_CHUNK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"


def read_files(layer: Layer) -> dict[str, bytes]:
    """The regular files of a small layer, by their name without a leading slash."""
    with open_blob(layer) as blob, open_tar(open_layer(blob, layer.digest), layer) as archive:
        return {
            member.name.removeprefix("./"): cast("IO[bytes]", archive.extractfile(member)).read()
            for member in archive
            if member.isreg()
        }


@contextmanager
def open_tar(plain: HashingReader, layer: Layer) -> Iterator[tarfile.TarFile]:
    """The tar of a layer, to be read once; at the end the checksums of ``plain`` are read too."""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|", bufsize=_CHUNK) as archive:
            yield archive
        while plain.read(_CHUNK):
            pass
    except tarfile.TarError as error:
        raise ImageError(f"layer {layer.digest} is not a tar archive: {error}") from error


def open_layer(source: Any, name: str) -> HashingReader:
    """The tar in a blob: gzip (RFC 1952) or zstd (RFC 8878) of any number of parts, or plain.

    The first bytes decide, not the media type. Reading raises an ImageError with ``name`` for
    compressed data that is damaged or truncated.
    """
    blob = BufferedReader(source, _CHUNK)
    head = blob.peek(4)[:4]
    if head[:2] == _GZIP:
        from gzip import BadGzipFile

        # Several times faster than the standard library's.
        from isal import igzip
        from isal.igzip_lib import IsalError

        plain = cast("Any", igzip.IGzipFile)(fileobj=blob, mode="rb")
        return HashingReader(plain, name, errors=(IsalError, BadGzipFile, EOFError))
    if head == _ZSTD or (head[1:] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return HashingReader(zstd.ZstdFile(blob), name, errors=(zstd.ZstdError, EOFError))
    return HashingReader(blob, name)


class HashingReader(RawIOBase):
    """Reads ``source`` and hashes what it reads.

    ``errors`` are those of a decompressor; they become an ImageError with the layer's ``name``.
    """

    def __init__(self, source: Any, name: str, errors: Any = ()) -> None:
        self._source = source
        self._name = name
        self._errors = errors
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._source.read(size)
        except self._errors as error:
            raise ImageError(
                f"layer {self._name} is damaged or truncated: {error}",
                hint="Fetch or build the image again.",
                layer=self._name,
            ) from error
        self._hash.update(data)
        self.size += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def open_blob(layer: Layer) -> IO[bytes]:
    """The blob of a layer that is on this machine."""
    if isinstance(layer.blob, bytes):
        return BytesIO(layer.blob)
    if layer.blob is None:
        raise ImageError(
            f"the blob of layer {layer.digest} is not on this machine",
            hint="Fetch the image first.",
        )
    try:
        return layer.blob.open("rb")
    except OSError as error:
        raise ImageError(f"cannot read layer {layer.digest}: {error}") from error
