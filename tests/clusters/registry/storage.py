"""A registry's storage on a small disk of its own, to fill and to write-protect."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until

_MOUNT = 'mount -t tmpfs -o "size=$1m,mode=700" disk "$2"; shift 2; exec "$@"'


def on_small_disk(mebibytes: int, path: Path, command: tuple[str, ...]) -> tuple[str, ...]:
    """``command`` with a disk of that size at ``path``, which ends with it: nothing is left."""
    alone = (
        "unshare",
        *_own_user(),
        "--mount",
        "sh",
        "-ec",
        _MOUNT,
        "sh",
        str(mebibytes),
        str(path),
    )
    return (*alone, *command)


@dataclass(frozen=True)
class SmallDisk:
    """The disk at ``path`` as the process ``pid`` sees it."""

    pid: int
    path: Path

    @property
    def _filler(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.path}/filler")

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 4096):
                while _written(filler.fileno(), size):
                    pass

    def free(self) -> None:
        """Give back what :meth:`fill` took."""
        self._filler.unlink(missing_ok=True)

    def protect(self, protected: bool = True) -> None:
        """Make it read-only, or writable again. It waits for files that are being written."""
        options = "remount,bind,ro" if protected else "remount,bind,rw"
        spaces = [f"--target={self.pid}", "--mount", *(("--user",) if _own_user() else ())]
        command = ["nsenter", *spaces, "--preserve-credentials", "--", "mount", "-o", options]

        problem = ""

        def done() -> bool:
            nonlocal problem
            tried = subprocess.run(
                [*command, str(self.path)], check=False, capture_output=True, text=True
            )
            problem = tried.stderr
            return tried.returncode == 0

        if not wait_until(done, 30):
            raise StartError(f"{self.path} cannot be remounted: {problem}")


def _own_user() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("--user", "--map-root-user")


def _written(handle: int, size: int) -> bool:
    try:
        os.write(handle, bytes(size))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise
    return True
