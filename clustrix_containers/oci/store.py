"""The content-addressed cache: blobs by digest, and records that map a key to layers.

::

    CACHE/blobs/sha256/<hex>      blobs, as they are pushed
    CACHE/layers/<hex>.json       key -> layers (descriptors, diff_ids, the blobs' mtimes)
    CACHE/tmp/                    files that are being written

A record is trusted while each blob has the size and the modification time from the record.
A blob of another size is deleted. A blob with another time is hashed once; then the record is
updated, or the blob deleted. A record whose blobs are incomplete is ignored.
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
from typing import Any

from clustrix_containers.errors import ImageError
from clustrix_containers.storage import atomic

from .model import Descriptor, Layer, canonical, check_digest

FORMAT = 1
"""Part of every key: raise it when the bytes that this stage writes change."""

_CHUNK = 1 << 20


def blob_path(cache: Path, digest: str) -> Path:
    """The path of the blob with this digest, whether or not it exists."""
    return cache / "blobs" / "sha256" / check_digest(digest).removeprefix("sha256:")


class Spool:
    """Bytes that are kept in memory up to ``spill`` bytes, else in a temporary file of the cache.

    A context manager; afterwards the file is gone.
    """

    def __init__(self, cache: Path, *, spill: int = 0) -> None:
        self.size = 0
        self._cache = cache
        self._spill = spill
        self._memory: list[bytes] = []
        self._file: Any = None

    def write(self, data: bytes) -> None:
        if not data:
            return
        self.size += len(data)
        if self._file is None and self.size <= self._spill:
            self._memory.append(bytes(data))
            return
        try:
            if self._file is None:
                folder = self._cache / "tmp"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
                self._file = path.open("xb", buffering=_CHUNK)
                self._file.write(b"".join(self._memory))
                self._memory.clear()
            self._file.write(data)
        except OSError as error:
            raise _cannot_write(self._cache, error) from error

    def content(self) -> bytes | Path:
        """What was written: the bytes, or the temporary file."""
        if self._file is None:
            return b"".join(self._memory)
        self._file.flush()
        return Path(self._file.name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)


class BlobWriter(Spool):
    """A Spool that hashes its bytes; without a commit nothing is left in the cache."""

    def __init__(self, cache: Path, *, spill: int = 0) -> None:
        super().__init__(cache, spill=spill)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        super().write(data)

    def commit(self) -> tuple[str, Path | bytes]:
        """The digest, and the blob: its bytes, or its file, complete and synced to disk."""
        digest = "sha256:" + self._hash.hexdigest()
        try:
            content = self.content()
            if isinstance(content, bytes):
                return digest, content
            os.fsync(self._file.fileno())
            final = blob_path(self._cache, digest)
            final.parent.mkdir(parents=True, exist_ok=True)
            # An equal blob stays, so that other records' modification times remain valid.
            if not _is_intact(final, self.size, digest):
                content.replace(final)
        except OSError as error:
            raise _cannot_write(self._cache, error) from error
        return digest, final


def cache_key(*parts: Any) -> str:
    """The name of a record: a hash over the parts, which must be JSON values."""
    return hashlib.sha256(canonical([FORMAT, *parts])).hexdigest()


def cached_layers(cache: Path, key: str, make: Callable[[], Iterable[Layer]]) -> tuple[Layer, ...]:
    """The layers recorded under ``key``, else those that ``make`` returns, recorded from now on."""
    layers = recall(cache, key)
    if layers is None:
        layers = tuple(make())
        remember(cache, key, layers)
    return layers


def remember(cache: Path, key: str, layers: Iterable[Layer]) -> None:
    """Record these layers, whose blobs are files in the cache, under ``key``."""
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
    atomic.write(_record(cache, key), canonical({"version": FORMAT, "layers": rows}))


def recall(cache: Path, key: str) -> tuple[Layer, ...] | None:
    """The layers recorded under ``key`` if all their blobs are intact, else ``None``."""
    path = _record(cache, key)
    try:
        rows = json.loads(path.read_bytes())["layers"]
        layers, touched = [], False
        for row in rows:
            descriptor = Descriptor.from_json(row)
            blob = blob_path(cache, descriptor.digest)
            stat = blob.stat()
            if (stat.st_size, stat.st_mtime_ns) != (descriptor.size, row["mtime"]):
                if not _is_intact(blob, descriptor.size, descriptor.digest):
                    blob.unlink(missing_ok=True)
                    return None
                touched = True
            layers.append(Layer(descriptor, row["diff_id"], blob, None, row["created_by"]))
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None
    if touched:
        remember(cache, key, layers)
    return tuple(layers)


def _record(cache: Path, key: str) -> Path:
    return cache / "layers" / f"{key}.json"


def _is_intact(path: Path, size: int, digest: str) -> bool:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except FileNotFoundError:
        return False
    return "sha256:" + found.hexdigest() == digest


def _cannot_write(cache: Path, error: OSError) -> ImageError:
    return ImageError(
        f"cannot write to the cache {str(cache)!r}: {error.strerror or error}",
        hint="Free space there, or use another cache directory.",
        path=str(cache),
    )
