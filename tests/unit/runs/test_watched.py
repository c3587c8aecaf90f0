"""Watching runs: one poller for all, waits side by side, and what is decided for elements."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.task import Fetched, Handle, Task
from clustrix_containers.errors import ClusterError, ResultError, ResultLost, WorkerDied
from clustrix_containers.runs.record import Record, Run
from clustrix_containers.runs.record.handles import unpack
from clustrix_containers.runs.watching.watched import WatchedRun

from .scripted import ScriptedCluster, unreachable, write_outcome

SUCCEEDED = Status(State.SUCCEEDED)
RUNNING = Status(State.RUNNING)
FAILED = Status(State.FAILED, Cause.DIED, 1, "exit code 1")
EVICTED = Status(State.FAILED, Cause.EVICTED, None, "was evicted")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "state")


@pytest.fixture
def start(record: Record) -> Callable[..., WatchedRun]:
    """Submit and watch a run of so many elements."""

    def start(cluster: Any, count: int = 1, run: str = "run-1", **fields: Any) -> WatchedRun:
        asked = Run(run, "f", f"sha256:{run}", count, "test", "test", reference="x", **fields)
        directory = record.intend(asked, built=True)
        record.update(run, more=cluster.submit(asked.task(directory)), state="submitted")
        found = record.run(run)
        watched = WatchedRun(found, cluster, record, trust=True)
        watched.watch()
        return watched

    return start


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


def test_a_hundred_late_marks_are_waited_for_side_by_side(start, record: Record) -> None:
    ended = threading.Event()
    cluster = ScriptedCluster(
        lambda _: SUCCEEDED if ended.is_set() else Status(State.RUNNING),
        lambda task, handle: Fetched(grace=30),
    )
    run = start(cluster, 100, array=True)
    directory = record.run_directory("run-1")

    def show_late() -> None:
        for element in range(100):
            write_outcome(directory, Handle("run-1", 0, element, "7"), element * element)

    began = time.monotonic()
    ended.set()
    threading.Timer(5.0, show_late).start()
    waiting = concurrent.futures.wait(run.jobs, 60).not_done
    assert not waiting
    assert time.monotonic() - began < 8.0
    assert [job.result() for job in run.jobs] == [x * x for x in range(100)]


def test_elements_are_fetched_together_and_an_error_of_one_is_its_own(start, record) -> None:
    def fetched(task: Task, handle: Handle) -> Fetched:
        if handle.element == 3:
            return Fetched(error=ResultError("was tampered with"))
        write_outcome(task.directory, handle, handle.element)
        return Fetched()

    cluster = ScriptedCluster(lambda _: SUCCEEDED, fetched)
    run = start(cluster, 50)
    concurrent.futures.wait(run.jobs, 60)
    assert [job.result() for job in run.jobs if job.element != 3] == [
        it for it in range(50) if it != 3
    ]
    assert isinstance(run.jobs[3].exception(), ResultError)
    assert sum(map(len, cluster.fetches)) == 50
    assert len(cluster.fetches) <= 5


def test_a_result_that_takes_long_holds_up_no_other(start, record) -> None:
    over: set[int] = {0}
    begun, arrived = threading.Event(), threading.Event()

    def fetched(task: Task, handle: Handle) -> Fetched:
        if handle.element == 0:
            begun.set()
            assert arrived.wait(60)
        write_outcome(task.directory, handle, handle.element)
        return Fetched()

    cluster = ScriptedCluster(
        lambda handle: SUCCEEDED if handle.element in over else RUNNING, fetched
    )
    run = start(cluster, 4, array=True)
    assert begun.wait(60)
    over.update((1, 2))
    assert [run.jobs[it].result(60) for it in (1, 2)] == [1, 2]
    assert not run.jobs[0].done()
    over.add(3)
    assert run.jobs[3].result(60) == 3
    arrived.set()
    assert run.jobs[0].result(60) == 0
    until(lambda: record.run("run-1").state == "done")


def test_one_poller_and_one_query_for_all_runs_of_a_cluster(start, record: Record) -> None:
    go = threading.Event()

    def fetched(task: Task, handle: Handle) -> Fetched:
        write_outcome(task.directory, handle, task.run)
        return Fetched()

    cluster = ScriptedCluster(lambda _: SUCCEEDED if go.is_set() else RUNNING, fetched)
    runs = [start(cluster, 2, f"run-{number}") for number in range(20)]
    until(lambda: any(len(poll) == 40 for poll in cluster.polls))
    assert len(cluster.pollers) == 1
    go.set()
    assert [run.jobs[1].result(60) for run in runs] == [run.id for run in runs]
    until(lambda: {record.run(run.id).state for run in runs} == {"done"})
    until(lambda: "clustrix-poller" not in {thread.name for thread in threading.enumerate()})


def test_the_poller_starts_again_for_a_later_run(start) -> None:
    def fetched(task: Task, handle: Handle) -> Fetched:
        write_outcome(task.directory, handle, 1)
        return Fetched()

    cluster = ScriptedCluster(lambda _: SUCCEEDED, fetched)
    for number in range(3):
        run = start(cluster, 1, f"run-{number}")
        assert run.jobs[0].result(60) == 1
        until(lambda run=run: run.over)


def test_news_is_asked_about_at_once_and_only_that(start) -> None:
    ended: set[int] = set()

    def fetched(task: Task, handle: Handle) -> Fetched:
        write_outcome(task.directory, handle, handle.element)
        return Fetched()

    cluster = ScriptedCluster(
        lambda handle: SUCCEEDED if handle.element in ended else Status(State.RUNNING),
        fetched,
        (1000.0, 1000.0),
    )
    run = start(cluster, 10)
    until(lambda: any(len(poll) == 10 for poll in cluster.polls))
    ended.update({2, 5})
    cluster.notify["run-1"]([2, 5])
    assert run.jobs[5].result(60) == 5
    assert sorted(handle.element for handle in cluster.polls[-1]) == [2, 5]
    run.jobs[7].cancel()
    until(lambda: run.open_count == 7)
    assert [handle.element for handle in cluster.cancelled] == [7]


def test_a_failed_query_changes_nothing(start) -> None:
    answer: list[Callable[[Handle], Status]] = [unreachable]
    cluster = ScriptedCluster(lambda handle: answer[0](handle))
    run = start(cluster)
    until(lambda: len(cluster.polls) > 3)
    assert run.jobs[0].status.state is State.PENDING
    answer[0] = lambda _: FAILED
    with pytest.raises(WorkerDied, match="exit code 1") as caught:
        run.jobs[0].result(60)
    assert "its last words" in str(caught.value)


def test_a_cluster_with_a_fault_ends_the_waiting_and_not_in_silence(start) -> None:
    def broken(_handle: Handle) -> Status:
        raise ZeroDivisionError("a fault of the plugin")

    run = start(ScriptedCluster(broken))
    with pytest.raises(ZeroDivisionError):
        run.jobs[0].result(60)


def test_lost_elements_run_again_a_few_times_under_another_attempt(start, record: Record) -> None:
    cluster = ScriptedCluster(lambda handle: EVICTED if handle.element else SUCCEEDED)
    cluster.fetched = lambda task, handle: (
        write_outcome(task.directory, handle, 0) or Fetched() if not handle.element else Fetched()
    )
    run = start(cluster, 3)
    concurrent.futures.wait(run.jobs, 60)
    assert run.jobs[0].result() == 0
    for job in run.jobs[1:]:
        with pytest.raises(WorkerDied, match="was evicted"):
            job.result()
    again = {(task.attempt, element) for task in cluster.submitted[1:] for element in task.elements}
    assert again == {(attempt, element) for attempt in (1, 2, 3) for element in (1, 2)}
    found = unpack(record.run("run-1").handles, "run-1")
    assert {element: handle.attempt for element, handle in found.items()} == {0: 0, 1: 3, 2: 3}


def test_what_was_lost_after_its_outcome_was_written_does_not_run_again(start) -> None:
    def fetched(task: Task, handle: Handle) -> Fetched:
        write_outcome(task.directory, handle, "in time")
        return Fetched()

    cluster = ScriptedCluster(lambda _: EVICTED, fetched)
    assert start(cluster).jobs[0].result(60) == "in time"
    assert len(cluster.submitted) == 1


def test_what_is_temporary_is_fetched_again(start) -> None:
    tries: list[Handle] = []

    def fetched(task: Task, handle: Handle) -> Fetched:
        tries.append(handle)
        if len(tries) < 4:
            return Fetched(error=ClusterError("connection reset", temporary=True))
        write_outcome(task.directory, handle, "here")
        return Fetched()

    assert start(ScriptedCluster(lambda _: SUCCEEDED, fetched)).jobs[0].result(60) == "here"
    assert len(tries) == 4


def test_an_outcome_that_is_nowhere_is_lost(start) -> None:
    cluster = ScriptedCluster(lambda _: SUCCEEDED, lambda task, handle: Fetched(grace=0.2))
    with pytest.raises(ResultLost, match="cxc rerun sha256:run-1"):
        start(cluster).jobs[0].result(60)


def test_what_cannot_start_is_withdrawn_before_it_is_settled(start) -> None:
    refused = Status(State.FAILED, Cause.REFUSED, None, "its image cannot be pulled")
    cluster = ScriptedCluster(lambda _: refused)
    run = start(cluster, 4)
    with pytest.raises(WorkerDied, match="cannot be pulled"):
        run.jobs[0].result(60)
    assert sorted(handle.element for handle in cluster.cancelled) == [0, 1, 2, 3]


def test_the_last_of_an_array_cancels_all_of_it(start) -> None:
    from clustrix_containers.api.jobs import JobArray

    cluster = ScriptedCluster()
    run = start(cluster, 5, array=True)
    assert JobArray(run, run.jobs).cancel() == 5
    assert [handle.element for handle in cluster.cancelled] == list(range(5))
    until(lambda: run.over)
