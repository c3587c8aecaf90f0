"""Mounts of this machine: whether one is there, and how it goes whatever became of its maker."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until


def mounted(path: Path) -> bool:
    """Whether something is mounted at an absolute path, even if nobody answers for it any more."""
    wanted = os.fsencode(path.parent.resolve() / path.name)
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        where = re.sub(rb"\\(\d{3})", lambda it: bytes([int(it[1], 8)]), line.split(b" ")[4])
        if where == wanted:
            return True
    return False


def unmount(path: Path) -> None:
    """Take away what is mounted there, also while it is in use or dead; fine if nothing is."""

    def gone() -> bool:
        if mounted(path):
            # A path is not looked at, which a dead file system would answer with an error.
            subprocess.run(
                ["umount", "--lazy", "--no-canonicalize", "--internal-only", "--", path],
                check=False,
                capture_output=True,
            )
        return not mounted(path)

    if not wait_until(gone, 30):
        raise StartError(f"{path} cannot be unmounted")
