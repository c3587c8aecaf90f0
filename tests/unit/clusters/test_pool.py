"""The machine's resources: who may start, who waits, and what a dead supervisor leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.clusters.local import journal
from clustrix_containers.clusters.local.pool import Machine, ResourcePool
from clustrix_containers.storage import locks

MACHINE = Machine((0, 1, 2, 3), 1 << 30)


class Runs:
    """Attempts that live, each with its lock and its FIFO, as a supervisor has them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open: dict[Path, list[int]] = {}

    def pool(self, name: str, cpus: float = 1, memory: int | None = None) -> ResourcePool:
        control = self.directory / name
        control.mkdir()
        lock = locks.hold(control / journal.LOCK)
        assert lock is not None
        self.open[control] = [lock, journal.open_wake(control)]
        return ResourcePool(self.directory / "pool", control, cpus, memory, MACHINE)

    def woken(self, pool: ResourcePool) -> bool:
        try:
            return bool(os.read(self.open[pool.control][1], 100))
        except BlockingIOError:
            return False

    def die(self, pool: ResourcePool) -> None:
        for file in self.open.pop(pool.control):
            os.close(file)


@pytest.fixture
def runs(tmp_path: Path):
    made = Runs(tmp_path)
    yield made
    for files in made.open.values():
        for file in files:
            os.close(file)


def test_cores_are_shared_out_and_no_core_twice(runs: Runs) -> None:
    first, second = runs.pool("a", 2), runs.pool("b", 1)
    taken = [first.acquire(0), second.acquire(0), second.acquire(1)]
    assert sorted(core for cores in taken for core in cores) == [0, 1, 2, 3]
    assert second.acquire(2) is None
    first.release(0)
    assert runs.woken(second)
    assert second.acquire(2) and second.acquire(3)


def test_memory_counts(runs: Runs) -> None:
    first, second = runs.pool("a", 1, 700 << 20), runs.pool("b", 1, 400 << 20)
    assert first.acquire(0) is not None
    assert second.acquire(0) is None
    first.release(0)
    assert runs.woken(second)
    assert second.acquire(0) is not None


def test_a_large_request_is_not_overtaken(runs: Runs) -> None:
    small, large, late = runs.pool("small"), runs.pool("large", 4), runs.pool("late")
    assert small.acquire(0) and small.acquire(1)
    assert large.acquire(0) is None
    assert late.acquire(0) is None
    small.release(0)
    assert runs.woken(large)
    assert large.acquire(0) is None
    assert small.acquire(2) is None
    small.release(1)
    assert not runs.woken(late)
    assert large.acquire(0) == {0, 1, 2, 3}
    large.release(0)
    assert runs.woken(late)
    assert late.acquire(0)


def test_more_than_the_machine_has_runs_alone(runs: Runs) -> None:
    small, huge = runs.pool("small"), runs.pool("huge", 64, 1 << 50)
    assert small.acquire(0)
    assert huge.acquire(0) is None
    small.release(0)
    assert huge.acquire(0) == {0, 1, 2, 3}
    assert small.acquire(1) is None


def test_what_a_dead_supervisor_held_and_waited_for_is_forgotten(runs: Runs) -> None:
    holder, waiter, third = runs.pool("a", 4), runs.pool("b", 4), runs.pool("c", 4)
    assert holder.acquire(0)
    assert waiter.acquire(0) is None
    assert third.acquire(0) is None
    runs.die(holder)
    runs.die(waiter)
    assert third.acquire(0)


def test_leaving_the_queue_lets_the_next_one_start(runs: Runs) -> None:
    holder, waiter, third = runs.pool("a", 3), runs.pool("b", 4), runs.pool("c", 1)
    assert holder.acquire(0)
    assert waiter.acquire(0) is None
    assert third.acquire(0) is None
    waiter.leave_queue()
    assert runs.woken(third)
    assert third.acquire(0)


def test_a_damaged_table_is_replaced(runs: Runs) -> None:
    pool = runs.pool("a")
    assert pool.acquire(0)
    next((runs.directory / "pool").glob("*.json")).write_bytes(b"")
    pool.release(0)
    assert pool.acquire(0)


@given(st.floats(0.01, 300), st.none() | st.integers(1, 1 << 40))
def test_as_many_fit_as_the_machine_has(cpus: float, memory: int | None) -> None:
    count = MACHINE.capacity(cpus, memory)
    assert count >= 1
    if count > 1:
        assert count * cpus <= 4 + 1e-3
        assert count * (memory or 0) <= MACHINE.memory
