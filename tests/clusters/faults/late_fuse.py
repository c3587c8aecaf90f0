"""``late_fuse.py SOURCE PATH SECONDS``: the file system of a LateView, until SIGTERM.

The file SECONDS holds the delay of new names. A process of its own serves it: one that waits for
its own file system would wait for ever. It imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

try:
    import mfusepy
except OSError:
    sys.exit("libfuse3 is not installed: run 'make setup-system' as root")


class Names:
    """Which names below ``source`` have shown, by their path in the view (``/a/b``)."""

    def __init__(self, source: str, seconds: Path) -> None:
        self._source = source
        self._seconds = seconds
        self._shown = {"/"}
        self._appeared: dict[str, float] = {}
        for folder, folders, files in os.walk(source):
            inside = folder[len(source) :]
            self._shown.update(f"{inside}/{name}" for name in (*folders, *files))

    def look_up(self, path: str) -> os.stat_result:
        """What is there, if it shows; ENOENT if not."""
        try:
            found = os.lstat(self._source + path)
        except OSError:
            self.forget(path)
            raise
        if path not in self._shown:
            now = time.time()
            # Making and renaming set ctime: the name is at least that old. And it may be
            # written to all the time, so what counts is when it was first seen.
            appeared = self._appeared.setdefault(path, min(now, found.st_ctime))
            if now < appeared + float(self._seconds.read_text()):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.show(path)
        return found

    def show(self, path: str) -> None:
        self._appeared.pop(path, None)
        self._shown.add(path)

    def forget(self, path: str) -> None:
        self._appeared.pop(path, None)
        self._shown.discard(path)

    def move(self, old: str, new: str) -> None:
        """What has shown below a folder shows after its renaming."""
        below = [it for it in self._shown if it == old or it.startswith(f"{old}/")]
        self._shown.difference_update(below)
        self._shown.update(new + it[len(old) :] for it in below)
        self.show(new)


class View:
    """What libfuse calls. The kernel has looked up each name of a path, and checked modes."""

    use_ns = True

    def __init__(self, source: str, seconds: Path) -> None:
        self._source = source
        self._names = Names(source, seconds)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = self._names.look_up(path) if fh is None else os.fstat(fh)
        names = ("mode", "ino", "nlink", "uid", "gid", "size", "blocks", "rdev")
        times = ("atime", "mtime", "ctime")
        return {f"st_{it}": getattr(found, f"st_{it}") for it in names} | {
            f"st_{it}": getattr(found, f"st_{it}_ns") for it in times
        }

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        folder = "" if path == "/" else path
        listed = {".": os.lstat(self._source + path), "..": os.lstat(self._source)}
        for name in os.listdir(self._source + path):
            with contextlib.suppress(OSError):
                listed[name] = self._names.look_up(f"{folder}/{name}")
        return [
            (name, {"st_mode": found.st_mode, "st_ino": found.st_ino}, 0)
            for name, found in listed.items()
        ]

    def readlink(self, path: str) -> str:
        return os.readlink(self._source + path)

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._source + path, mode)
        return self._made(path)

    def mknod(self, path: str, mode: int, device: int) -> int:
        os.mknod(self._source + path, mode, device)
        return self._made(path)

    def symlink(self, path: str, pointed_to: str) -> int:
        os.symlink(pointed_to, self._source + path)
        return self._made(path)

    def link(self, path: str, existing: str) -> int:
        os.link(self._source + existing, self._source + path, follow_symlinks=False)
        self._names.show(path)
        return 0

    def create(self, path: str, mode: int, flags: int = os.O_RDWR) -> int:
        real = self._source + path
        try:
            made = os.open(real, flags & ~os.O_DIRECT | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            # It has not shown: nobody has checked yet whether the caller may.
            if flags & os.O_EXCL or os.lstat(real).st_uid != mfusepy.fuse_get_context()[0]:
                raise
            self._names.show(path)
            return self.open(path, flags)
        self._made(path)
        return made

    def open(self, path: str, flags: int) -> int:
        return os.open(self._source + path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_DIRECT))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._source + path if fh is None else fh, length)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._source + path)
        self._names.forget(path)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._source + path)
        self._names.forget(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._source + old, self._source + new)
        self._names.move(old, new)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._source + path, mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        # An id that stays as it is comes without its sign.
        ids = [-1 if it == 2**32 - 1 else it for it in (uid, gid)]
        os.chown(self._source + path, ids[0], ids[1], follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        real = self._source + path
        now, found = time.time_ns(), os.lstat(real)
        atime, mtime = times or (now, now)
        chosen = (_chosen(atime, now, found.st_atime_ns), _chosen(mtime, now, found.st_mtime_ns))
        os.utime(real, ns=chosen, follow_symlinks=False)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._source + path)
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "namemax")
        return {f"f_{it}": getattr(found, f"f_{it}") for it in names}

    def _made(self, path: str) -> int:
        """Give what was made to whoever asked for it: this process is root."""
        uid, gid, _ = mfusepy.fuse_get_context()
        inherited = os.stat(os.path.dirname(self._source + path)).st_mode & stat.S_ISGID
        real = self._source + path
        mode = os.lstat(real).st_mode
        os.chown(real, uid, -1 if inherited else gid, follow_symlinks=False)
        if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(mode):
            os.chmod(real, stat.S_IMODE(mode))  # chown has taken these away
        self._names.show(path)
        return 0


def _chosen(asked: int, now: int, kept: int) -> int:
    """A time in ns, of which the kernel's UTIME_NOW and UTIME_OMIT are two."""
    return {2**30 - 1: now, 2**30 - 2: kept}.get(asked, asked)


def main() -> None:
    source, path, seconds = sys.argv[1:]
    os.umask(0)
    mfusepy.FUSE(
        View(os.path.realpath(source), Path(seconds)),
        path,
        foreground=True,
        nothreads=True,
        allow_other=True,
        default_permissions=True,
        use_ino=True,
        hard_remove=True,
        # The kernel remembers nothing, so that lateness is ours alone.
        entry_timeout=0,
        negative_timeout=0,
        attr_timeout=0,
    )


main()
