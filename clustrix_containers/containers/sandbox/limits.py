"""Memory and processor limits: by cgroups where this process may make them, else by sampling.

cgroup v1 as root (``memory`` and ``cpu`` hierarchies), v2 as root or where a systemd user
session has delegated a subtree. See cgroups(7) and cgroup-v2 of the kernel's documentation.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.remote import shell

MOUNT = Path("/sys/fs/cgroup")
PARENT = "clustrix"
"""Never removed, even when it is empty: another run may be about to start in it."""

PERIOD = 100_000


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One container's cgroup, or their parent: a directory for each controller, one for all in v2."""

    version: int
    memory: Path | None
    cpu: Path | None

    @property
    def directories(self) -> list[Path]:
        return list(dict.fromkeys(path for path in (self.memory, self.cpu) if path))

    def create(self, name: str, *, memory: int | None, cpus: float) -> Cgroup:
        """A child with these limits (bytes, cores). ``OSError`` if the kernel refuses."""
        child = Cgroup(
            self.version,
            self.memory / name if self.memory and memory else None,
            self.cpu / name if self.cpu else None,
        )
        try:
            for path in child.directories:
                path.mkdir(exist_ok=True)
            child._set_limits(memory, max(1000, int(cpus * PERIOD)))
        except OSError:
            child.remove(patience=0)
            raise
        return child

    def _set_limits(self, memory: int | None, quota: int) -> None:
        old = self.version == 1
        if self.memory:
            name = "memory.limit_in_bytes" if old else "memory.max"
            (self.memory / name).write_text(f"{memory}")
            # v1 limits memory and swap together. Absent where the kernel counts no swap.
            swap = "memory.memsw.limit_in_bytes" if old else "memory.swap.max"
            with contextlib.suppress(OSError):
                (self.memory / swap).write_text(f"{memory}" if old else "0")
        if self.cpu and old:
            (self.cpu / "cpu.cfs_period_us").write_text(f"{PERIOD}")
            (self.cpu / "cpu.cfs_quota_us").write_text(f"{quota}")
        elif self.cpu:
            (self.cpu / "cpu.max").write_text(f"{quota} {PERIOD}")

    def join(self) -> None:
        """Put the calling process into the cgroup."""
        for path in self.directories:
            (path / "cgroup.procs").write_text("0")

    def peak(self) -> int:
        """The highest memory use in bytes; 0 if the kernel does not report it."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        with contextlib.suppress(OSError, ValueError):
            return int((self.memory / name).read_text()) if self.memory else 0
        return 0

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for the memory limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        with contextlib.suppress(OSError, ValueError):
            for line in (self.memory / name).read_text().splitlines() if self.memory else ():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def remove(self, patience: float = 1.0) -> None:
        """Remove the cgroup; wait up to ``patience`` seconds for its last processes to exit."""
        deadline = time.monotonic() + patience
        for path in self.directories:
            while path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
                    break
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)


def find() -> Cgroup | None:
    """Where this process may make cgroups with at least a memory limit; ``None`` if nowhere."""
    own = _own_groups()
    if "memory" in own:
        memory = _usable(MOUNT / "memory" / own["memory"].lstrip("/"))
        cpu = next((p for p in map(MOUNT.joinpath, ("cpu", "cpu,cpuacct")) if p.is_dir()), None)
        cpu = _usable(cpu / own.get("cpu", "/").lstrip("/")) if cpu else None
        return Cgroup(1, memory, cpu) if memory else None
    if "" in own and (MOUNT / "cgroup.controllers").exists():
        return _find_unified(MOUNT / own[""].lstrip("/"))
    return None


def _find_unified(path: Path) -> Cgroup | None:
    """The nearest ancestor that delegates the memory controller and is writable for us.

    A cgroup with processes of its own (ours) cannot enable controllers for children: start above.
    """
    while path != MOUNT and MOUNT in path.parents:
        path = path.parent
        with contextlib.suppress(OSError):
            delegated = (path / "cgroup.subtree_control").read_text().split()
            allowed = os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)
            if not allowed or "memory" not in delegated:
                continue
            parent = path / PARENT
            parent.mkdir(exist_ok=True)
            wanted = [f"+{name}" for name in ("memory", "cpu") if name in delegated]
            (parent / "cgroup.subtree_control").write_text(" ".join(wanted))
            return Cgroup(2, parent, parent if "cpu" in delegated else None)
    return None


def _own_groups() -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        groups = (line.split(":", 2)[1:] for line in lines)
        return {name: path for controllers, path in groups for name in controllers.split(",")}
    return {}


def _usable(path: Path) -> Path | None:
    parent = path / PARENT
    try:
        parent.mkdir(exist_ok=True)
    except OSError:
        return None
    return parent if os.access(parent, os.W_OK) else None


def remove_all(parent: Cgroup, prefix: str) -> None:
    """Remove the cgroups whose names start with ``prefix``."""
    for directory in parent.directories:
        for path in directory.glob(f"{prefix}*"):
            Cgroup(parent.version, path, None).remove()


# --- without a cgroup -------------------------------------------------------------------------


def memory_in_use(pid: int, limit: int) -> int:
    """Bytes that a process and its descendants hold, from ``/proc``.

    Resident sizes count a shared page in each process, so above ``limit`` the exact
    proportional sizes count, which cost more: the kernel walks the page tables.
    """
    resident = sum(map(_resident, shell.tree(pid)))
    if resident <= limit:
        return resident
    # Anew: of a process that has just ended, nothing counts.
    return sum(_proportional(process) or _resident(process) for process in shell.tree(pid))


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(process: int) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/smaps_rollup", "rb") as f:
        for line in f:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return 0
