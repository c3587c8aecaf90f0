"""What every target must do with a run."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import clustrix_containers as cx
from clustrix_containers.api.status import State
from clustrix_containers.errors import (
    MemoryLimitExceeded,
    ResultError,
    TimeLimitExceeded,
    WorkerDied,
)
from clustrix_containers.runs.record import open_record
from tests.cases import work

from .targets import Target, on_targets


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def test_round_trip(on: str) -> None:
    job = cx.function(work.square).submit(12, on=on)
    assert isinstance(job, concurrent.futures.Future)
    assert job.result(60) == 144
    assert job.done()
    assert not job.cancelled()
    assert job.exception() is None
    assert job.status.state is State.SUCCEEDED


def test_the_image_is_the_same_whatever_runs_it(on: str) -> None:
    function = cx.function(work.square)
    there, here = function.submit(3, on=on), function.submit(3, on="local")
    assert there.image == here.image
    assert there.result(60) == here.result(60) == 9


def test_array_in_order_and_as_completed(on: str) -> None:
    jobs = cx.function(work.square).map(range(7), on=on)
    assert {job.result() for job in jobs.as_completed(60)} == {x * x for x in range(7)}
    assert list(jobs) == [x * x for x in range(7)]
    assert jobs[3].result() == 9
    assert len({job.run for job in jobs[:]}) == 1


def test_map_of_two_iterables_and_of_one_item(on: str) -> None:
    power = cx.function(pow)
    assert list(power.map([2, 3], [5, 2], on=on)) == [32, 9]
    jobs = power.map([2], [3], on=on)
    assert list(cx.attach(jobs.run)) == [8]


def test_exception_chain_and_stubborn_exception(on: str) -> None:
    with pytest.raises(ValueError, match="chained") as info:
        cx.function(work.raises_chain).submit(on=on).result(60)
    text = "".join(traceback.format_exception(info.value))
    assert "KeyError" in text
    assert 'raise ValueError("chained") from error' in text
    with pytest.raises(cx.errors.Error, match="code 7 at here") as info:
        cx.function(work.raises_stubborn).submit(on=on).result(60)
    assert "Stubborn" in str(info.value)


def test_exception_of_one_element_leaves_the_others(on: str) -> None:
    jobs = cx.function(work.divide).map([1, 0, 2], on=on)
    assert jobs.wait(60)
    assert [type(job.exception()) for job in jobs[:]] == [
        type(None),
        ZeroDivisionError,
        type(None),
    ]


def test_sys_exit_is_the_users(on: str) -> None:
    job = cx.function(work.exits).submit(3, on=on)
    with pytest.raises(SystemExit) as info:
        job.result(60)
    assert info.value.code == 3


def test_unpicklable_result(on: str) -> None:
    with pytest.raises(ResultError, match="lock"):
        cx.function(work.unpicklable).submit(on=on).result(60)


def test_time_limit(on: str) -> None:
    job = cx.function(work.wait_for, timeout=1).submit(60, on=on)
    with pytest.raises(TimeLimitExceeded, match="1 s"):
        job.result(60)


def test_memory_limit(on: str) -> None:
    job = cx.function(work.eats_memory, memory="150MiB").submit(2000, on=on)
    with pytest.raises(MemoryLimitExceeded, match="150"):
        job.result(60)


def test_worker_killed(on: str) -> None:
    job = cx.function(work.kills_itself).submit(on=on)
    with pytest.raises(WorkerDied, match=r"SIGKILL|signal 9"):
        job.result(60)


def test_logs_while_running_and_after(on: str) -> None:
    job = cx.function(work.counts_aloud).submit(5, 0.3, on=on)
    lines = job.logs(follow=True)
    assert next(lines) == "line 0 – ünïcode\n"
    assert not job.done()
    assert list(lines)[3:] == ["line 4 – ünïcode\n", "to stderr\n"]
    job.result(60)
    assert len(list(job.logs())) == 6


def test_cancel_ends_the_whole_tree(on: str) -> None:
    job = cx.function(work.leaves_children).submit(on=on)
    assert next(job.logs(follow=True)).startswith("children")
    # Its output may be here before the watcher has asked again.
    until(job.running)
    before = _sleepers()
    assert before >= 3
    assert job.cancel()
    assert job.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        job.result()
    until(lambda: _sleepers() <= before - 3)
    assert not job.cancel() or job.cancelled()


def _sleepers() -> int:
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return sum(line.strip() == "sleep 987" for line in listing.stdout.splitlines())


def test_attach_from_another_process_after_the_client_was_killed(on: str, script) -> None:
    client = f"""
import os, signal, sys
import clustrix_containers as cx
from tests.cases import work
job = cx.function(work.wait_for).submit(1.5, on={on!r})
print(job.run, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = script(client, check=False).stdout.strip()
    assert cx.attach(run).result(60) == 1.5


def test_two_clients_at_once(on: str, script) -> None:
    text = f"""
import clustrix_containers as cx
from tests.cases import work
print(list(cx.function(work.square).map(range(4), on={on!r})))
"""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: script(text, name=name), ["a.py", "b.py"]))
    assert [item.stdout for item in done] == ["[0, 1, 4, 9]\n"] * 2


def test_big_result_is_not_copied_in_memory(on: str) -> None:
    size = 1 << 28
    job = cx.function(work.big, memory="2GiB").submit(size, on=on)
    value = job.result(120)
    assert value.nbytes == size
    assert value[-1] == size // 8 - 1
    value[0] = 7
    assert value[0] == 7


def test_inside_of_the_container(on: str, target: Target, tmp_path: Path) -> None:
    mine = "yes ' \" $HOME $(id) `id` \\ %s ${x}\nü\n"
    seen = cx.function(work.environment, env={"MINE": mine}, shm="96MiB").submit(on=on).result(60)
    assert seen["uid"] != 0
    assert seen["home"].startswith("/tmp")
    assert seen["writable"] == ["/tmp"]
    assert seen["executable"] == "/opt/venv/bin/python"
    assert seen["environ"]["MINE"] == mine
    assert seen["shm"] == 96 << 20 if target.sizes_shm else seen["shm"] >= 96 << 20
    assert not [entry for entry in seen["path"] if not entry.startswith("/opt/")]
    for secret_of_the_host in (sys.prefix, str(tmp_path)):
        assert not [name for name, value in seen["environ"].items() if secret_of_the_host in value]


def test_a_package_of_the_caller_that_was_not_captured_cannot_be_imported(on: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="pytest") as info:
        cx.function(work.imports_what_is_not_there).submit(on=on).result(60)
    assert "packages=['pytest']" in "".join(getattr(info.value, "__notes__", []))


@pytest.mark.parametrize("function", [work.plots, work.pool])
def test_libraries_that_want_a_home_or_shared_memory(function, on: str) -> None:
    assert cx.function(function).submit(on=on).result(120)


def test_rerun_of_the_same_digest(on: str) -> None:
    from clustrix_containers.runs.attach import handle
    from clustrix_containers.runs.submit import rerun

    jobs = cx.function(work.square).map(range(3), on=on)
    assert list(jobs) == [0, 1, 4]
    again = handle(rerun(jobs.image, cx.Options(on=on), trust=False))
    assert again.image == jobs.image
    assert again.run != jobs.run
    assert list(again) == [0, 1, 4]


def test_executor_is_a_drop_in(on: str) -> None:
    with cx.Executor(on) as executor:
        assert list(executor.map(work.square, [1, 2])) == [1, 4]
        future = executor.submit(work.square, 3)
        assert next(concurrent.futures.as_completed([future])).result() == 9
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(work.square, 4)


@on_targets("sandbox")
def test_ten_thousand_items_are_one_image_and_one_array_in_flat_memory(on: str, script) -> None:
    done = script(
        f"""
from pathlib import Path
import clustrix_containers as cx
from tests.cases import work

def peak():
    # Not ru_maxrss: a new process inherits that of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

square = cx.function(work.square)
square.submit(1, on={on!r}).result()
before = peak()
jobs = square.map((x for x in range(10_000)), on={on!r})
assert len(jobs) == 10_000 and len({{job.run for job in jobs[:]}}) == 1
assert jobs[0].result(60) == 0
print(jobs.cancel() > 9_000, jobs.wait(60))
print((peak() - before) // 1024)
"""
    )
    first, second = done.stdout.splitlines()
    assert first == "True True"
    assert int(second) < 64, "MiB for 10,000 jobs"


@on_targets("sandbox")
def test_runs_that_are_submitted_one_by_one_share_the_machine(on: str) -> None:
    room = len(os.sched_getaffinity(0))
    with cx.Executor(on, cpus=1) as executor:
        # However slow it is to submit: while these run there is no room.
        fill = [executor.submit(work.wait_for, 1000) for _ in range(room)]
        for one in fill:
            until(one.running)
        jobs = [executor.submit(work.started_and_ended, 0.2) for _ in range(10 * room)]
        states = {job.status.state for job in jobs}
        for one in fill:
            one.cancel()
        spans = [job.result(120) for job in jobs]
    assert states == {State.PENDING}
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    at_once = list(itertools.accumulate(change for _, change in moments))
    assert max(at_once) <= room
    assert len({job.run for job in jobs}) == len(jobs)


@on_targets("sandbox")
def test_a_run_that_waits_for_room_can_be_cancelled_and_a_killed_one_makes_room(on: str) -> None:
    everything = len(os.sched_getaffinity(0))
    function = cx.function(work.wait_for, cpus=everything)
    first = function.submit(1000, on=on)
    until(first.running)
    waiting, last = function.submit(1000, on=on), function.submit(0, on=on)
    assert waiting.cancel()
    assert waiting.cancelled()
    assert last.status.state is State.PENDING
    os.kill(supervisor(first), signal.SIGKILL)
    assert last.result(60) == 0
    assert isinstance(first.exception(60), WorkerDied)


def supervisor(job: cx.Job) -> int:
    """The process that keeps a local run."""
    events = open_record().run_directory(job.run) / "local/0/events.jsonl"
    return int(json.loads(events.read_text().splitlines()[0])["pid"])
