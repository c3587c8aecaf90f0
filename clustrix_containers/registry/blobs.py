"""A directory of blobs named by their sha256: ``blobs/sha256/<hex>`` of an image layout."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.model import Descriptor, check_digest, sha256

from .stream import BLOCK

_ABANDONED = 600.0
"""Seconds after which a temporary file that nobody writes to belongs to nobody."""

_NO_ROOM = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
}


@contextlib.contextmanager
def clear_disk_errors(what: str, directory: Path) -> Iterator[None]:
    """A full, read-only or forbidden disk becomes one ImageError that says so."""
    try:
        yield
    except OSError as error:
        reason = _NO_ROOM.get(error.errno or 0)
        if reason is not None:
            raise ImageError(
                f"cannot write {what} to {directory}: {reason}",
                hint="Free some space (clustrix-containers prune), or choose another directory.",
                path=directory,
                errno=error.errno,
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            raise ImageError(
                f"cannot write {what} to {directory}: {error.strerror} ({error.filename})",
                hint="Choose a directory of your own, or have its permissions changed.",
                path=directory,
                errno=error.errno,
            ) from error
        raise


def write_atomically(path: Path, data: bytes, temporary: Path) -> None:
    """``data`` under ``path`` by way of a new file in ``temporary`` (same file system)."""
    with _new_file(temporary) as (name, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        name.chmod(0o644)
        name.replace(path)


@contextlib.contextmanager
def _new_file(directory: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file that is gone afterwards, unless it was renamed."""
    directory.mkdir(parents=True, exist_ok=True)
    handle, text = tempfile.mkstemp(dir=directory)
    name = Path(text)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            yield name, file
    finally:
        name.unlink(missing_ok=True)


class Blobs:
    """The blobs below ``root``; temporary files live in ``root/.tmp``.

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
        """Whether the blob is there with the right size; one of another size is thrown away."""
        path = self.path(descriptor.digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        if size != descriptor.size:
            path.unlink(missing_ok=True)
            return False
        return True

    def discard(self, digest: str) -> None:
        """Throw away a blob whose bytes are wrong, and empty its other hard links.

        A cache that holds the same file finds its size wrong, and makes it again.
        """
        path = self.path(digest)
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
        path.unlink(missing_ok=True)

    def touch(self, digest: str) -> bool:
        """Make a blob young again; False if it is gone or belongs to somebody else."""
        path = self.path(digest)
        try:
            now = path.stat()
            os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))
        except (FileNotFoundError, PermissionError):
            return False
        return True

    def add_bytes(self, digest: str, data: bytes) -> None:
        found = sha256(data)
        if found != digest:
            raise DigestMismatch(
                f"a blob of {len(data):,} bytes has the digest {found}, not {digest}"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(digest), data, self.temporary)

    def add_file(self, descriptor: Descriptor, source: Path) -> None:
        """A hard link to ``source`` where that is possible, else a copy that is verified."""
        self._check_size(descriptor, source)
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._link(descriptor, source):
            self._copy(descriptor, source)

    def _check_size(self, descriptor: Descriptor, source: Path) -> None:
        try:
            size = source.stat().st_size
        except FileNotFoundError as error:
            raise ImageError(
                f"the blob {descriptor.digest} is not at {source} any more",
                hint="Build the image again.",
                path=source,
                digest=descriptor.digest,
            ) from error
        if size != descriptor.size:
            raise DigestMismatch(
                f"{source} has {size:,} bytes, its blob {descriptor.digest} has {descriptor.size:,}",
                hint="Delete the file and build the image again.",
                path=source,
                digest=descriptor.digest,
            )

    def _link(self, descriptor: Descriptor, source: Path) -> bool:
        self.temporary.mkdir(parents=True, exist_ok=True)
        # A link has no exclusive temporary name of its own, so it gets a directory.
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

    def _copy(self, descriptor: Descriptor, source: Path) -> None:
        digest = hashlib.sha256()
        with _new_file(self.temporary) as (name, file), source.open("rb") as data:
            while block := data.read(BLOCK):
                digest.update(block)
                file.write(block)
            if f"sha256:{digest.hexdigest()}" != descriptor.digest:
                raise DigestMismatch(
                    f"{source} has the digest sha256:{digest.hexdigest()}, not {descriptor.digest}",
                    hint="Delete the file and build the image again.",
                    path=source,
                    digest=descriptor.digest,
                )
            file.flush()
            os.fsync(file.fileno())
            name.chmod(0o644)
            name.replace(self.path(descriptor.digest))

    def sweep(self, referenced: set[str], grace: float) -> int:
        """Remove blobs that nothing refers to and that are ``grace`` seconds old, and left-overs.

        A temporary file is one once nobody has written to it for ten minutes. The bytes that this gives back: a blob that a cache holds by a hard link counts nothing.
        """
        now = self.now()
        freed = 0
        for path in self._entries(self.directory):
            if f"sha256:{path.name}" in referenced:
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime <= now - grace:
                    freed += _remove(path)
        for path in self._entries(self.temporary):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= now - max(grace, _ABANDONED):
                    freed += _remove(path)
        return freed

    @staticmethod
    def _entries(directory: Path) -> list[Path]:
        return list(directory.iterdir()) if directory.is_dir() else []

    def now(self) -> float:
        """The time as the file system's own clock has it: on NFS, the server's."""
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
