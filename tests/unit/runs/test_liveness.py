"""Absent, unknown, lost and late, with a clock of the test's own."""

from __future__ import annotations

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.task import Fetched, Handle
from clustrix_containers.errors import ClusterError, Error, ResultError
from clustrix_containers.runs.watching.liveness import (
    ABSENT_GRACE,
    ABSENT_POLLS,
    MARK_GRACE,
    MAX_LOSSES,
    PATIENCE,
    Liveness,
)

ELEMENT = Handle("run-1", 0, 0, "id")
ABSENT = Status(State.ABSENT)
RUNNING = Status(State.RUNNING)
UNKNOWN = Status(State.UNKNOWN, message="connection refused")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def liveness(clock: Clock) -> Liveness:
    return Liveness("run-1", "hpc", clock)


def test_absent_is_what_several_polls_over_a_grace_do_not_know(
    liveness: Liveness, clock: Clock
) -> None:
    for _ in range(ABSENT_POLLS + 5):
        assert liveness.observe(ELEMENT, ABSENT) is None
    assert liveness.absent()
    clock.now += ABSENT_GRACE
    status = liveness.observe(ELEMENT, ABSENT)
    assert status is not None
    assert (status.state, status.cause) == (State.FAILED, Cause.DIED)
    assert "hpc" in status.message


def test_few_polls_are_not_enough_however_long_they_take(liveness: Liveness, clock: Clock) -> None:
    assert liveness.observe(ELEMENT, ABSENT) is None
    clock.now += 10 * ABSENT_GRACE
    assert liveness.observe(ELEMENT, ABSENT) is None


def test_a_failed_query_is_neither_absent_nor_known(liveness: Liveness, clock: Clock) -> None:
    for _ in range(10):
        liveness.observe(ELEMENT, ABSENT)
        clock.now += 1
        assert liveness.observe(ELEMENT, UNKNOWN) is None
    assert liveness.observe(ELEMENT, RUNNING) is RUNNING
    assert not liveness.absent()
    clock.now += ABSENT_GRACE
    for _ in range(ABSENT_POLLS - 1):
        assert liveness.observe(ELEMENT, ABSENT) is None


def test_the_clusters_own_words_are_kept(liveness: Liveness, clock: Clock) -> None:
    deleted = Status(State.ABSENT, Cause.DELETED, message="its Job was deleted")
    for _ in range(ABSENT_POLLS):
        liveness.observe(ELEMENT, deleted)
    clock.now += ABSENT_GRACE
    status = liveness.observe(ELEMENT, deleted)
    assert status == Status(State.FAILED, Cause.DELETED, message="its Job was deleted")


def test_a_target_out_of_reach_ends_the_waiting_not_the_run(
    liveness: Liveness, clock: Clock
) -> None:
    clock.now += PATIENCE
    assert liveness.observe(ELEMENT, UNKNOWN) is None
    clock.now += 1
    with pytest.raises(Error, match="unreachable for 900 s: connection refused") as caught:
        liveness.observe(ELEMENT, UNKNOWN)
    assert "cxc result run-1" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "fetched", "grace"),
    [
        (Status(State.SUCCEEDED), Fetched(), MARK_GRACE),
        (Status(State.FAILED), Fetched(), 0.0),
        (Status(State.FAILED), Fetched(grace=30), 30.0),
        (Status(State.SUCCEEDED), Fetched(grace=0), 0.0),
    ],
)
def test_a_mark_may_be_late_for_as_long_as_the_cluster_says(
    liveness: Liveness, clock: Clock, status: Status, fetched: Fetched, grace: float
) -> None:
    ended = clock.now
    assert liveness.is_late(status, fetched, ended) is (grace > 0)
    clock.now += grace
    assert not liveness.is_late(status, fetched, ended)


def test_lost_is_only_what_is_not_the_functions_fault_and_only_a_few_times(
    liveness: Liveness,
) -> None:
    evicted = Status(State.FAILED, Cause.EVICTED)
    assert liveness.is_lost(evicted, 0)
    assert not liveness.is_lost(evicted, MAX_LOSSES)
    assert not liveness.is_lost(Status(State.FAILED, Cause.DIED), 0)
    assert not liveness.is_lost(Status(State.SUCCEEDED), 0)


def test_only_what_is_temporary_is_fetched_again_and_not_for_ever(
    liveness: Liveness, clock: Clock
) -> None:
    assert not liveness.may_pass(0, ResultError("tampered"))
    away = ClusterError("connection reset", temporary=True)
    assert liveness.may_pass(0, away)
    clock.now += PATIENCE
    assert not liveness.may_pass(0, away)
    assert liveness.may_pass(1, away)
