"""The control groups of a machine: one in every hierarchy, so that nothing escapes a limit."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until


@dataclass(frozen=True)
class Groups:
    """The groups called ``name``, below those of this process."""

    name: str

    @property
    def directories(self) -> list[Path]:
        """One per hierarchy that is mounted here."""
        return [parent / self.name for parent in _parents()]

    def make(self) -> None:
        """Make them; fine if they are there."""
        for directory in self.directories:
            directory.mkdir(exist_ok=True)
            # A new cpuset of version 1 has no processor and takes no process.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (directory / file).exists() and not (directory / file).read_text().strip():
                    (directory / file).write_text((directory.parent / file).read_text())

    def processes(self) -> list[int]:
        """The processes in them and below."""
        found: set[int] = set()
        for directory in self.directories:
            for path, _, _ in os.walk(directory):
                with contextlib.suppress(OSError):
                    found.update(map(int, (Path(path) / "cgroup.procs").read_text().split()))
        return sorted(found)

    def freeze(self, frozen: bool) -> None:
        """Stop every process between two instructions, or let them go on."""
        for directory in self.directories:
            if (directory / "freezer.state").exists():  # version 1
                state = directory / "freezer.state"
                wanted = "FROZEN" if frozen else "THAWED"
            elif (directory / "cgroup.freeze").exists() and not _has_freezer():
                state = directory / "cgroup.freeze"
                wanted = "1" if frozen else "0"
            else:
                continue
            state.write_text(wanted)
            # Version 2 reports it in another file, and a process of it stops soon after.
            if state.name == "freezer.state" and not wait_until(partial(_holds, state, wanted), 30):
                raise StartError(f"{state} does not become {wanted}")

    def remove(self) -> None:
        """Remove them and all below, once their processes have ended."""
        for directory in self.directories:
            if not wait_until(partial(_removed, directory), 30):
                raise StartError(f"{directory} cannot be removed: {self.processes()} are in it")


def _has_freezer() -> bool:
    return Path("/sys/fs/cgroup/freezer").is_dir()


def _parents() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers:
            hierarchy = root / controllers.removeprefix("name=")
        else:
            hierarchy = root if len(lines) == 1 else root / "unified"
        # Another process's view of the hierarchy may begin above or below this process.
        own = hierarchy / path.lstrip("/")
        if hierarchy.is_dir():
            found.append(own if own.is_dir() else hierarchy)
    return found


def _holds(file: Path, text: str) -> bool:
    return text in file.read_text()


def _removed(directory: Path) -> bool:
    for path, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not directory.exists()
