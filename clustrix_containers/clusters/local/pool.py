"""The machine's cores and memory, shared by all supervisors of one user.

``POOL/HOST.json`` lists who holds what and who waits, with tickets in order of arrival. It is
only accessed under ``POOL/HOST.lock``, which is held for a moment. An entry counts while its
supervisor is alive. Whoever releases something wakes the first in the queue; the timeouts
cover what a crashed supervisor did not release.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustrix_containers.storage import atomic
from clustrix_containers.storage.locks import is_held, locked

from . import journal

FIRST_RETRY = 1.0
"""Seconds after which the first in the queue tries again without being woken."""

OTHERS_RETRY = 5.0

_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Machine:
    """What is shared: core numbers, and bytes of memory."""

    cores: tuple[int, ...]
    memory: int

    @classmethod
    def this(cls) -> Machine:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(tuple(sorted(os.sched_getaffinity(0))), int(total * 0.9))

    def capacity(self, cpus: float, memory: int | None) -> int:
        """How many elements of this size fit at once; 1 if one is larger than the machine."""
        count = int(len(self.cores) / cpus + _SLACK) if cpus > 0 else len(self.cores)
        return max(1, min(count, self.memory // memory) if memory else count)


@dataclass
class ResourcePool:
    """One supervisor's access to it: ``control`` is the directory of its attempt.

    ``cpus`` (cores) and ``memory`` (bytes) are what each of its elements needs.
    """

    directory: Path
    control: Path
    cpus: float
    memory: int | None
    machine: Machine = field(default_factory=Machine.this)
    retry_at: float | None = None
    """When to try again (monotonic clock), while it waits."""

    def acquire(self, element: int) -> frozenset[int] | None:
        """The cores for an element; ``None``: wait until :attr:`retry_at`, or a wake-up.

        An element that is larger than the machine gets all of it, once nothing else runs.
        """
        with self._table() as table:
            entry = self._entry(table)
            if not self._may_start(table, entry):
                self._remove_dead(table)
                if not self._may_start(table, entry):
                    self._wait(table, entry)
                    return None
            cores = self._least_used(table)
            entry["ticket"], self.retry_at = None, None
            entry["held"][str(element)] = [self.cpus, self.memory or 0, sorted(cores)]
            self._wake_first(table)
            return cores

    def release(self, element: int) -> None:
        """An element has ended."""
        with self._table() as table:
            self._entry(table)["held"].pop(str(element), None)
            self._settle(table)

    def leave_queue(self) -> None:
        """Stop waiting."""
        if self.retry_at is None:
            return
        self.retry_at = None
        with self._table() as table:
            self._entry(table)["ticket"] = None
            self._settle(table)

    def retry_now(self) -> None:
        """Try again at the next opportunity, if it waits."""
        if self.retry_at is not None:
            self.retry_at = 0.0

    def _entry(self, table: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = table.setdefault(str(self.control), {"ticket": None, "held": {}})
        return entry

    def _settle(self, table: dict[str, Any]) -> None:
        entry = self._entry(table)
        if entry["ticket"] is None and not entry["held"]:
            del table[str(self.control)]
        self._wake_first(table)

    def _may_start(self, table: dict[str, Any], entry: dict[str, Any]) -> bool:
        return _is_first(table, entry) and self._fits(table)

    def _wait(self, table: dict[str, Any], entry: dict[str, Any]) -> None:
        first = _is_first(table, entry)
        if entry["ticket"] is None:
            entry["ticket"] = 1 + max(_tickets(table), default=0)
        pause = FIRST_RETRY if first else OTHERS_RETRY * (1 + random.random())  # noqa: S311
        self.retry_at = time.monotonic() + pause

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

    def _remove_dead(self, table: dict[str, Any]) -> None:
        for name in list(table):
            if name != str(self.control) and not is_held(Path(name, journal.LOCK)):
                del table[name]

    def _wake_first(self, table: dict[str, Any]) -> None:
        tickets = _tickets(table)
        if not tickets:
            return
        first = tickets[min(tickets)]
        if first == str(self.control):
            self.retry_now()
        else:
            journal.wake(Path(first))

    @contextlib.contextmanager
    def _table(self) -> Iterator[dict[str, Any]]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{os.uname().nodename}.json"
        with locked(path.with_suffix(".lock"), mode=0o600):
            before, table = _read(path)
            yield table
            after = json.dumps(table).encode()
            if after != before:
                atomic.write(path, after, mode=0o600)


def _tickets(table: dict[str, Any]) -> dict[int, str]:
    """Who waits, by ticket."""
    return {entry["ticket"]: name for name, entry in table.items() if entry["ticket"] is not None}


def _is_first(table: dict[str, Any], entry: dict[str, Any]) -> bool:
    tickets = _tickets(table)
    return not tickets or bool(entry["ticket"] == min(tickets))


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    data = b""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
    try:
        return data, dict(json.loads(data))
    except ValueError:
        # Truncated by a crash of the machine, after which nothing runs that it could describe.
        return data, {}
