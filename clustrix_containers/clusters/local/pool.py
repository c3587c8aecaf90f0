"""The machine's cores and memory, shared by all supervisors of one user.

``ROOM/HOST.json`` lists who holds what and who waits, in the order in which they came; it is
only touched under a lock, ``ROOM/HOST.lock``, that is held for a moment. An entry counts while
its supervisor holds its attempt's lock, which the kernel takes from one that dies. Who gives
something back wakes whoever is first in line; time-outs are for what a crash has left unsaid.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import journal

FIRST_LOOKS = 1.0
"""Seconds after which the first in line looks again by itself."""

OTHERS_LOOK = 5.0

_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to share: core numbers, and bytes."""

    cores: tuple[int, ...]
    memory: int

    @classmethod
    def here(cls) -> Machine:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(tuple(sorted(os.sched_getaffinity(0))), int(total * 0.9))

    def fits(self, cpus: float, memory: int | None) -> int:
        """How many elements of this size fit at once; 1 if one is larger than the machine."""
        many = int(len(self.cores) / cpus + _SLACK) if cpus > 0 else len(self.cores)
        return max(1, min(many, self.memory // memory) if memory else many)


@dataclass
class Room:
    """One supervisor's part of it: ``control`` is its attempt's directory.

    ``cpus`` (cores) and ``memory`` (bytes) are what each of its elements takes.
    """

    directory: Path
    control: Path
    cpus: float
    memory: int | None
    machine: Machine = field(default_factory=Machine.here)
    look_at: float | None = None
    """When to try again (monotonic clock), while it waits."""

    def take(self, element: int) -> frozenset[int] | None:
        """The cores for an element; ``None`` if it has to wait until :attr:`look_at`, or a wake-up.

        An element that is larger than the machine gets all of it, once nothing else runs.
        """
        with self._table() as table:
            mine = table.setdefault(str(self.control), {"ticket": None, "held": {}})
            first = self._is_first(table, mine)
            if not first or not self._fits(table):
                self._forget_dead(table)
                first = self._is_first(table, mine)
            if not first or not self._fits(table):
                if mine["ticket"] is None:
                    mine["ticket"] = 1 + max(
                        (entry["ticket"] or 0 for entry in table.values()), default=0
                    )
                pause = FIRST_LOOKS if first else OTHERS_LOOK * (1 + random.random())  # noqa: S311
                self.look_at = time.monotonic() + pause
                return None
            cores = self._least_used(table)
            mine["ticket"], self.look_at = None, None
            mine["held"][str(element)] = [self.cpus, self.memory or 0, sorted(cores)]
            self._wake_first(table)
            return cores

    def give_back(self, element: int) -> None:
        """An element has ended."""
        with self._table() as table:
            entry = table.get(str(self.control))
            if entry is not None:
                entry["held"].pop(str(element), None)
            self._settle(table)

    def leave_line(self) -> None:
        """Nothing is wanted any more, for now."""
        if self.look_at is None:
            return
        self.look_at = None
        with self._table() as table:
            entry = table.get(str(self.control))
            if entry is not None:
                entry["ticket"] = None
            self._settle(table)

    def look_now(self) -> None:
        """Try again at the next opportunity, if it waits."""
        if self.look_at is not None:
            self.look_at = 0.0

    def _settle(self, table: dict[str, Any]) -> None:
        entry = table.get(str(self.control))
        if entry is not None and entry["ticket"] is None and not entry["held"]:
            del table[str(self.control)]
        self._wake_first(table)

    def _is_first(self, table: dict[str, Any], mine: dict[str, Any]) -> bool:
        tickets = [entry["ticket"] for entry in table.values() if entry["ticket"] is not None]
        return not tickets or bool(mine["ticket"] == min(tickets))

    def _fits(self, table: dict[str, Any]) -> bool:
        held = [item for entry in table.values() for item in entry["held"].values()]
        if not held:
            return True
        cpus = self.cpus + sum(item[0] for item in held)
        memory = (self.memory or 0) + sum(item[1] for item in held)
        return bool(cpus <= len(self.machine.cores) + _SLACK and memory <= self.machine.memory)

    def _least_used(self, table: dict[str, Any]) -> frozenset[int]:
        load = dict.fromkeys(self.machine.cores, 0.0)
        for entry in table.values():
            for cpus, _, cores in entry["held"].values():
                for core in cores:
                    if core in load:
                        load[core] += cpus / len(cores)
        count = min(len(load), max(1, -int(-self.cpus // 1)))
        return frozenset(sorted(load, key=lambda core: (load[core], core))[:count])

    def _forget_dead(self, table: dict[str, Any]) -> None:
        for name in list(table):
            if name != str(self.control) and not journal.is_locked(Path(name)):
                del table[name]

    def _wake_first(self, table: dict[str, Any]) -> None:
        waiting = [name for name, entry in table.items() if entry["ticket"] is not None]
        if not waiting:
            return
        first = min(waiting, key=lambda name: int(table[name]["ticket"]))
        if first == str(self.control):
            self.look_now()
        else:
            journal.wake(Path(first))

    @contextlib.contextmanager
    def _table(self) -> Iterator[dict[str, Any]]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        host = os.uname().nodename
        path = self.directory / f"{host}.json"
        lock = os.open(
            self.directory / f"{host}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before, table = _read(path)
            yield table
            after = json.dumps(table).encode()
            if after != before:
                temporary = path.with_name(f".{host}.{secrets.token_hex(4)}.tmp")
                temporary.write_bytes(after)
                temporary.replace(path)
        finally:
            os.close(lock)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    data = b""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
    try:
        return data, dict(json.loads(data))
    except ValueError:
        # Emptied by a crash of the machine, after which nothing runs that it could tell of.
        return data, {}
