"""Blobs: a directory of them (``blobs/sha256/<hex>`` of an image layout), and verified streams."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.model import Descriptor, check_digest, sha256
from clustrix_containers.oci.reading import HashingReader
from clustrix_containers.storage import atomic

BLOCK = 1 << 20
"""Bytes that are read and written at once."""

ProgressCallback = Callable[[Descriptor, int], None]
"""``(blob, bytes of it that have been transferred)``; called from several threads."""

_ABANDONED = 600.0
"""Seconds without a write after which a temporary file belongs to no living process."""


@contextlib.contextmanager
def disk_errors(what: str, directory: Path) -> Iterator[None]:
    """OSErrors, of a disk that is full, read-only or forbidden, become ImageErrors."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free some space (clustrix-containers prune)" if full else "Change its permissions"
        hint = f"{remedy}, or choose another directory."
        at = f" ({error.filename})" if error.filename else ""
        message = f"cannot write {what} to {directory}: {error.strerror or error}{at}"
        raise ImageError(message, hint=hint, path=directory, errno=error.errno) from error


def check_size(descriptor: Descriptor, path: Path) -> None:
    """ImageError if the blob's file does not exist, DigestMismatch if its size is wrong."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ImageError(
            f"the blob {descriptor.digest} no longer exists at {path}",
            hint="Build the image again.",
            path=path,
            digest=descriptor.digest,
        ) from error
    if size != descriptor.size:
        raise _mismatch(descriptor, path, f"has {size:,} bytes")


def _mismatch(blob: Descriptor, where: Path | str, why: str) -> DigestMismatch:
    message = f"blob {blob.digest} ({blob.size:,} bytes) from {where} {why}"
    if isinstance(where, str):
        return DigestMismatch(message, digest=blob.digest)
    hint = "Delete the file and build the image again."
    return DigestMismatch(message, hint=hint, path=where, digest=blob.digest)


class Blobs:
    """The blobs below ``root``; unfinished files are in ``root/.tmp``.

    The age of a blob is that of its inode's last change (ctime): a hard link and
    :meth:`touch` renew it, and neither changes the mtime that others may compare.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "blobs" / "sha256"
        self.temporary = root / ".tmp"

    def path(self, digest: str) -> Path:
        return self.directory / check_digest(digest).removeprefix("sha256:")

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether the blob exists with the right size; one of another size is removed."""
        path = self.path(descriptor.digest)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == descriptor.size:
                return True
            path.unlink()
        return False

    def discard(self, digest: str) -> None:
        """Remove a damaged blob, and truncate its other hard links.

        A cache that shares the file then finds its size wrong, and makes it again.
        """
        path = self.path(digest)
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
        path.unlink(missing_ok=True)

    def touch(self, digest: str) -> bool:
        """Renew a blob's age; False if it does not exist or belongs to another user."""
        path = self.path(digest)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            now = path.stat()
            os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
            return True
        return False

    def write(self, path: Path, data: bytes) -> None:
        """A file of the layout, durable and atomic."""
        atomic.write(path, data, mode=0o644, durable=True, partial=self.temporary)

    def add_bytes(self, digest: str, data: bytes) -> None:
        found = sha256(data)
        if found != digest:
            raise DigestMismatch(
                f"a blob of {len(data):,} bytes has the digest {found}, not {digest}"
            )
        self.write(self.path(digest), data)

    def add_file(self, descriptor: Descriptor, source: Path) -> None:
        """A hard link to ``source`` where the file system allows it, else a verified copy."""
        check_size(descriptor, source)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._link(descriptor, source):
            return
        path = self.path(descriptor.digest)
        with (
            verified(source.open("rb"), descriptor, source) as data,
            atomic.replacing(path, mode=0o644, durable=True, partial=self.temporary) as file,
        ):
            shutil.copyfileobj(data, file, BLOCK)

    def _link(self, descriptor: Descriptor, source: Path) -> bool:
        self.temporary.mkdir(parents=True, exist_ok=True)
        # In a directory of its own, whose age is the push's: the link's mtime is the source's.
        with tempfile.TemporaryDirectory(dir=self.temporary) as directory:
            name = Path(directory) / "link"
            try:
                os.link(source.resolve(), name)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return False
            name.replace(self.path(descriptor.digest))
        return True

    def sweep(self, referenced: set[str], grace: float) -> int:
        """Remove unreferenced blobs older than ``grace`` seconds; the bytes freed.

        Also removes abandoned temporary files (not written to for ten minutes). A blob that a
        cache shares by a hard link frees nothing.
        """
        now = self.now()
        freed = 0
        for path in list(self.directory.glob("*")):
            with contextlib.suppress(FileNotFoundError):
                old = path.stat().st_ctime <= now - grace
                if old and f"sha256:{path.name}" not in referenced:
                    freed += _remove(path)
        for path in list(self.temporary.glob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= now - max(grace, _ABANDONED):
                    freed += _remove(path)
        return freed

    def now(self) -> float:
        """The time by the file system's own clock: on NFS, the server's."""
        if not self.root.is_dir():
            return time.time()
        self.temporary.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.temporary) as file:
            return os.fstat(file.fileno()).st_ctime


def _remove(path: Path) -> int:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return 0
    status = path.stat()
    path.unlink()
    return status.st_size if status.st_nlink == 1 else 0


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def verified(
    source: Readable,
    descriptor: Descriptor,
    where: Path | str,
    on_mismatch: Callable[[], None] | None = None,
) -> BinaryIO:
    """``source`` as a buffered stream that raises DigestMismatch before its end if it is damaged."""
    reader = _VerifiedReader(source, descriptor, where, on_mismatch)
    return cast("BinaryIO", io.BufferedReader(reader, BLOCK))


@dataclass(eq=False)
class _VerifiedReader(io.RawIOBase):
    """Reads a blob and checks its size and digest.

    The block with the last byte is returned only after the check, so a caller that
    reads exactly ``descriptor.size`` bytes and stops has verified bytes too.
    """

    _source: Readable
    _descriptor: Descriptor
    _where: Path | str
    _on_mismatch: Callable[[], None] | None

    def __post_init__(self) -> None:
        self._hashed = HashingReader(self._source, self._descriptor.digest)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        blob, hashed = self._descriptor, self._hashed
        data = hashed.read(min(len(buffer), blob.size - hashed.size))
        left = blob.size - hashed.size
        if left and not data:
            self._fail(f"ends {left:,} bytes early")
        if not left and self._source.read(1):
            self._fail(f"is longer than {blob.size:,} bytes")
        if not left and hashed.digest != blob.digest:
            self._fail(f"has the digest {hashed.digest}")
        buffer[: len(data)] = data
        return len(data)

    def _fail(self, why: str) -> None:
        if self._on_mismatch is not None:
            self._on_mismatch()
        raise _mismatch(self._descriptor, self._where, why)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
