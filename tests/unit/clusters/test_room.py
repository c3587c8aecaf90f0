"""The machine's room: who may start, who waits, and what a dead supervisor leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.clusters.local import journal
from clustrix_containers.clusters.local.pool import Machine, Room

MACHINE = Machine((0, 1, 2, 3), 1 << 30)


class Runs:
    """Attempts that live, each with its lock and its FIFO, as a supervisor has them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open: dict[Path, list[int]] = {}

    def room(self, name: str, cpus: float = 1, memory: int | None = None) -> Room:
        control = self.directory / name
        control.mkdir()
        lock = journal.take_lock(control)
        assert lock is not None
        self.open[control] = [lock, journal.open_wake(control)]
        return Room(self.directory / "room", control, cpus, memory, MACHINE)

    def woken(self, room: Room) -> bool:
        try:
            return bool(os.read(self.open[room.control][1], 100))
        except BlockingIOError:
            return False

    def die(self, room: Room) -> None:
        for file in self.open.pop(room.control):
            os.close(file)


@pytest.fixture
def runs(tmp_path: Path):
    made = Runs(tmp_path)
    yield made
    for files in made.open.values():
        for file in files:
            os.close(file)


def test_cores_are_shared_out_and_no_core_twice(runs: Runs) -> None:
    first, second = runs.room("a", 2), runs.room("b", 1)
    taken = [first.take(0), second.take(0), second.take(1)]
    assert sorted(core for cores in taken for core in cores) == [0, 1, 2, 3]
    assert second.take(2) is None
    first.give_back(0)
    assert runs.woken(second)
    assert second.take(2) and second.take(3)


def test_memory_counts(runs: Runs) -> None:
    first, second = runs.room("a", 1, 700 << 20), runs.room("b", 1, 400 << 20)
    assert first.take(0) is not None
    assert second.take(0) is None
    first.give_back(0)
    assert runs.woken(second)
    assert second.take(0) is not None


def test_a_large_request_is_not_overtaken(runs: Runs) -> None:
    small, large, late = runs.room("small"), runs.room("large", 4), runs.room("late")
    assert small.take(0) and small.take(1)
    assert large.take(0) is None
    assert late.take(0) is None
    small.give_back(0)
    assert runs.woken(large)
    assert large.take(0) is None
    assert small.take(2) is None
    small.give_back(1)
    assert not runs.woken(late)
    assert large.take(0) == {0, 1, 2, 3}
    large.give_back(0)
    assert runs.woken(late)
    assert late.take(0)


def test_more_than_the_machine_has_runs_alone(runs: Runs) -> None:
    small, huge = runs.room("small"), runs.room("huge", 64, 1 << 50)
    assert small.take(0)
    assert huge.take(0) is None
    small.give_back(0)
    assert huge.take(0) == {0, 1, 2, 3}
    assert small.take(1) is None


def test_what_a_dead_supervisor_held_and_waited_for_is_forgotten(runs: Runs) -> None:
    holder, waiter, third = runs.room("a", 4), runs.room("b", 4), runs.room("c", 4)
    assert holder.take(0)
    assert waiter.take(0) is None
    assert third.take(0) is None
    runs.die(holder)
    runs.die(waiter)
    assert third.take(0)


def test_who_leaves_the_line_lets_the_next_one_go(runs: Runs) -> None:
    holder, waiter, third = runs.room("a", 3), runs.room("b", 4), runs.room("c", 1)
    assert holder.take(0)
    assert waiter.take(0) is None
    assert third.take(0) is None
    waiter.leave_line()
    assert runs.woken(third)
    assert third.take(0)


def test_a_damaged_table_is_begun_anew(runs: Runs) -> None:
    room = runs.room("a")
    assert room.take(0)
    next((runs.directory / "room").glob("*.json")).write_bytes(b"")
    room.give_back(0)
    assert room.take(0)


@given(st.floats(0.01, 300), st.none() | st.integers(1, 1 << 40))
def test_as_many_fit_as_the_machine_has(cpus: float, memory: int | None) -> None:
    count = MACHINE.fits(cpus, memory)
    assert count >= 1
    if count > 1:
        assert count * cpus <= 4 + 1e-3
        assert count * (memory or 0) <= MACHINE.memory
