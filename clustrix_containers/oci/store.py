"""The content-addressed cache: blobs by digest, and records that say which layers a key stands for.

::

    CACHE/blobs/sha256/<hex>      blobs, as they are pushed
    CACHE/layers/<hex>.json       key -> layers (descriptors, diff_ids, the blobs' mtimes)
    CACHE/tmp/                    files that are being written

A record is trusted while the blob has the size and the modification time that it had when
the record was written. Another size: the blob is thrown away. Another time: it is hashed once,
and the record follows or the blob is thrown away. A record without its blobs does not exist.
So the hot path costs one ``stat`` per blob, and a truncated, torn or edited blob is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from clustrix_containers.errors import ImageError

from .model import Descriptor, Layer, canonical, check_digest

FORMAT = 1
"""Part of every key: raise it when the bytes that this stage writes change."""

Progress = Callable[[str, int, "int | None"], None]
"""``progress(what, done, total)``; ``total`` is None where it is not known."""

_CHUNK = 1 << 20


def blob_path(cache: Path, digest: str) -> Path:
    """Where the blob with this digest lies, or would lie."""
    return cache / "blobs" / "sha256" / check_digest(digest).removeprefix("sha256:")


def temporary(cache: Path, suffix: str = "") -> Path:
    """A name that nobody else uses, on the file system of the cache."""
    folder = cache / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{os.getpid()}-{secrets.token_hex(8)}{suffix}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole small file, or leave what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class BlobWriter:
    """Bytes that become a blob: hashed as they come, in memory up to ``spill`` bytes, then in the cache.

    A context manager: what is not committed leaves nothing behind.
    """

    def __init__(self, cache: Path, *, spill: int = 0) -> None:
        self.size = 0
        self._cache = cache
        self._spill = spill
        self._hash = hashlib.sha256()
        self._memory: list[bytes] = []
        self._path: Path | None = None
        self._file: Any = None

    def write(self, data: bytes) -> None:
        if not data:
            return
        self._hash.update(data)
        self.size += len(data)
        if self._file is None and self.size <= self._spill:
            self._memory.append(bytes(data))
            return
        try:
            if self._file is None:
                self._path = temporary(self._cache)
                self._file = self._path.open("xb", buffering=_CHUNK)
                self._file.write(b"".join(self._memory))
                self._memory.clear()
            self._file.write(data)
        except OSError as error:
            raise _cannot_write(self._cache, error) from error

    def commit(self) -> tuple[str, Path | bytes]:
        """The digest, and the blob: its bytes, or its file, which is complete and on disk."""
        digest = "sha256:" + self._hash.hexdigest()
        if self._file is None:
            return digest, b"".join(self._memory)
        final = blob_path(self._cache, digest)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            final.parent.mkdir(parents=True, exist_ok=True)
            assert self._path is not None
            # An equal blob stays, so that other records' modification times go on holding.
            if not (_size(final) == self.size and _hash_file(final) == digest):
                self._path.replace(final)
        except OSError as error:
            raise _cannot_write(self._cache, error) from error
        finally:
            self._close()
        return digest, final

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


def cache_key(*parts: Any) -> str:
    """The name of a record: a hash over the parts, which must be JSON values."""
    return hashlib.sha256(canonical([FORMAT, *parts])).hexdigest()


def remember(cache: Path, key: str, layers: Iterable[Layer]) -> None:
    """Write down that ``key`` stands for these layers, whose blobs are files in the cache."""
    rows = []
    for layer in layers:
        assert isinstance(layer.blob, Path)
        rows.append(
            {
                **layer.descriptor.to_json(),
                "diff_id": layer.diff_id,
                "created_by": layer.created_by,
                "mtime": layer.blob.stat().st_mtime_ns,
            }
        )
    write_atomically(_record(cache, key), canonical({"version": FORMAT, "layers": rows}))


def recall(cache: Path, key: str) -> tuple[Layer, ...] | None:
    """The layers that ``key`` stands for if all their blobs are there and whole, else ``None``."""
    path = _record(cache, key)
    try:
        rows = json.loads(path.read_bytes())["layers"]
        layers, moved = [], False
        for row in rows:
            descriptor = Descriptor.from_json(row)
            blob = blob_path(cache, descriptor.digest)
            state = _check(blob, descriptor, row["mtime"])
            if state is None:
                return None
            moved |= state
            layers.append(Layer(descriptor, row["diff_id"], blob, None, row["created_by"]))
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None
    if moved:
        remember(cache, key, layers)
    return tuple(layers)


def _check(blob: Path, descriptor: Descriptor, mtime: int) -> bool | None:
    """``None``: not there or not whole. ``True``: whole, but touched since."""
    try:
        stat = blob.stat()
    except FileNotFoundError:
        return None
    if stat.st_size == descriptor.size:
        if stat.st_mtime_ns == mtime:
            return False
        if _hash_file(blob) == descriptor.digest:
            return True
    blob.unlink(missing_ok=True)
    return None


def _record(cache: Path, key: str) -> Path:
    return cache / "layers" / f"{key}.json"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def _cannot_write(cache: Path, error: OSError) -> ImageError:
    return ImageError(
        f"cannot write to the cache {str(cache)!r}: {error.strerror or error}",
        hint="Make room there, or name another cache directory.",
        path=str(cache),
    )
