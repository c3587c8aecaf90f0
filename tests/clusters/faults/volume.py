"""A small disk that a test can fill, and free again."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import Daemon
from tests.clusters.faults.mounts import mounted, unmount

_TMPFS = Path(__file__).with_name("tmpfs.py")


@dataclass(frozen=True)
class Volume:
    """A file system of ``size`` bytes at :attr:`path`; everybody may write in it.

    It is in memory, so keep it small, and bind it into machines before they start. With
    ``with_parent`` it goes when the thread that started it ends.
    """

    directory: Path
    size: int
    with_parent: bool = False

    @property
    def path(self) -> Path:
        return self.directory / "volume"

    @property
    def available(self) -> int:
        """The bytes that can be written still."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def up(self) -> None:
        """Make it, empty; fine if it is there."""
        if self._daemon.running():
            return
        unmount(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._daemon.start()

    def down(self) -> None:
        """Remove it with all that is in it."""
        self._daemon.stop()
        unmount(self.path)
        shutil.rmtree(self.directory, ignore_errors=True)

    def fill(self, leave: int = 0) -> None:
        """Use up all but about ``leave`` bytes (whole pages): writing more fails with ENOSPC."""
        amount = self.available - leave
        if amount > 0:
            with self._filling.open("ab") as file:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, amount)

    def free(self) -> None:
        """Give back what :meth:`fill` has used up."""
        self._filling.unlink(missing_ok=True)

    @property
    def _filling(self) -> Path:
        return self.path / ".filling"

    @property
    def _daemon(self) -> Daemon:
        return Daemon(
            name="tmpfs",
            command=(sys.executable, "-I", str(_TMPFS), str(self.path), str(self.size)),
            directory=self.directory,
            ready=lambda: mounted(self.path),
            with_parent=self.with_parent,
        )
