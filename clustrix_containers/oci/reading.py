"""Reads layers: the blob, the tar in it, its files."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from importlib import import_module
from io import BytesIO, RawIOBase
from typing import IO, Any, cast

from clustrix_containers.errors import ImageError

from .model import Layer

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read_files(layer: Layer) -> dict[str, bytes]:
    """The regular files of a small layer, by their name without a leading slash."""
    with open_blob(layer) as blob, open_layer(blob, layer.digest) as plain:
        try:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                return {
                    member.name.removeprefix("./"): cast(
                        "IO[bytes]", archive.extractfile(member)
                    ).read()
                    for member in archive
                    if member.isreg()
                }
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ImageError(f"layer {layer.digest} is not an archive: {error}") from error


def open_layer(source: IO[bytes], name: str) -> IO[bytes]:
    """The tar in a blob: gzip with any number of members, zstd where this Python has it, or plain.

    ``source`` is read on; ``name`` is for errors.
    """
    head = source.read(4)
    whole: Any = Stream(source, head)
    opened: Any = whole
    if head[:2] == _GZIP:
        opened = _gzip_reader()(fileobj=whole, mode="rb")
    elif head == _ZSTD:
        try:
            zstd: Any = import_module("compression.zstd")
        except ImportError:
            raise ImageError(
                f"layer {name} is compressed with zstd, which this Python cannot read",
                hint="Use Python 3.14, or an image with gzip layers.",
            ) from None
        opened = zstd.ZstdFile(whole)
    return opened  # type: ignore[no-any-return]


def _gzip_reader() -> Any:
    """isal's where it is installed, which is several times faster; the standard library's else."""
    try:
        from isal import igzip
    except ImportError:
        import gzip

        return gzip.GzipFile
    return igzip.IGzipFile


class Stream(RawIOBase):
    """Some bytes, then a stream; hashes what is read."""

    def __init__(self, rest: IO[bytes], head: bytes = b"") -> None:
        self._rest = rest
        self._head = head
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        if self._head:
            if 0 <= size < len(self._head):
                data, self._head = self._head[:size], self._head[size:]
            else:
                data, self._head = self._head, b""
                data += self._rest.read(size - len(data) if size >= 0 else -1)
        else:
            data = self._rest.read(size)
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
