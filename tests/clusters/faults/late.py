"""A view of a directory in which what others make shows late, as on a shared file system."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import Daemon
from tests.clusters.faults.mounts import mounted, unmount

_FUSE = Path(__file__).with_name("late_fuse.py")


@dataclass(frozen=True)
class LateView:
    """``source`` seen at :attr:`path`, where a name shows :meth:`show_after` seconds late.

    This is what an NFS client's cache of names does (``acdirmax``, negative entries): a file,
    directory or link that somebody makes in ``source``, or renames to a new name there, is not
    listed in the view, and looking it up (stat, open, rename from it) fails with ENOENT, until it
    is that old. What the view's own users make shows at once to them. A name that has shown stays
    while it exists: a file that replaces it shows at once, as open() asks the server. The
    server's word counts where something is made: mkdir, link and O_EXCL of a name that is there
    but has not shown fail with EEXIST. Contents, sizes and removals are never late, and locks do
    not reach beyond the view. Big files pass at hundreds of MB a second.

    Bind :attr:`path` into a machine before it starts; a view that was down and up again needs the
    machine started again. ``with_parent`` ends it with the thread that started it.
    """

    directory: Path
    source: Path
    with_parent: bool = False

    @property
    def path(self) -> Path:
        return self.directory / "view"

    def up(self) -> None:
        """Mount it; what is in ``source`` now shows already. Fine if it is there."""
        if self._daemon.running() and mounted(self.path):
            return
        self._end()
        self.path.mkdir(parents=True, exist_ok=True)
        self.show_after(0)
        self._daemon.start()

    def down(self) -> None:
        """Unmount it, and remove it; ``source`` stays."""
        self._end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def show_after(self, seconds: float) -> None:
        """How old a name has to be from now on; at first they show at once."""
        part = self.directory / ".seconds.part"
        part.write_text(str(seconds))
        part.replace(self.directory / "seconds")

    def logs(self) -> str:
        return self._daemon.logs()

    def _end(self) -> None:
        self._daemon.stop()
        unmount(self.path)

    @property
    def _daemon(self) -> Daemon:
        return Daemon(
            name="late",
            command=(
                *(sys.executable, "-I", "-X", "utf8", str(_FUSE)),
                *map(str, (self.source, self.path, self.directory / "seconds")),
            ),
            directory=self.directory,
            ready=lambda: mounted(self.path),
            with_parent=self.with_parent,
        )
