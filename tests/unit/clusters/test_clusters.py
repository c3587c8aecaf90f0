"""Opening targets, starting processes, unpacking layers: what goes wrong is said."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import open_cluster
from clustrix_containers.clusters.local import LocalCluster, journal
from clustrix_containers.clusters.local.plan import Mount, Plan
from clustrix_containers.containers.apptainer import mount_option
from clustrix_containers.errors import ClusterError


def test_local_is_known() -> None:
    cluster = open_cluster("local", {"runtime": "sandbox", "max_parallel": 3})
    assert isinstance(cluster, LocalCluster)
    assert cluster.max_parallel == 3


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="unknown target type 'slrum'") as caught:
        open_cluster("slrum", {})
    assert "local" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtme": "docker"}, "runtme"),
        ({"limits": "none"}, "auto or sample"),
        ({"max_parallel": 0}, "at least 1"),
    ],
)
def test_a_wrong_option_is_said(options: dict[str, object], says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        open_cluster("local", options)


def test_an_unknown_runtime_is_said() -> None:
    with pytest.raises(ClusterError, match="unknown runtime 'podman'"):
        LocalCluster(runtime="podman").describe()


@pytest.mark.parametrize("name", ["", "x", "/run#", "/run#0", "/run#a.b", "#0.0", "/run#-1.0"])
def test_ids_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="not an id"):
        LocalCluster().states([name])


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "run": "r", "name": "n", "attempt": 0, "image": "i", "elements": range(10),
        "directory": Path("/d"), "runtime": "sandbox", "means": "namespaces", "root": "/r",
        "argv": ("a",), "workdir": "/", "env": {"A": "ü\n"}, "mounts": (Mount("/s", "/t", True),),
        "uid": 1, "gid": 2, "cpus": 0.5, "memory": None, "timeout": 1.5, "shm": 4, "gpus": 0,
        "max_parallel": 2, "room": Path("/room"),
    }  # fmt: skip
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("elements", [range(10_000), range(0, 9, 2), (5, 1)])
def test_a_plan_survives_its_file(elements: object) -> None:
    made = plan(elements=elements)
    data = made.to_json()
    assert Plan.from_json(data) == made
    assert len(data) < 1000
    with pytest.raises(ClusterError, match="plan cannot be read"):
        Plan.from_json(data[:-1])


def test_a_journal_is_read_bit_by_bit(tmp_path: Path) -> None:
    writer, reader = journal.Writer(tmp_path), journal.Reader(tmp_path)
    reader.update()
    assert reader.started is None
    writer.note(event="start", pid=1, host="h")
    writer.status(3, journal.RUNNING)
    reader.update()
    assert reader.statuses == {3: journal.RUNNING}
    failed = Status(State.FAILED, Cause.MEMORY_LIMIT, 137, "to\nö")
    writer.status(3, failed)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"element": 4, "state"')
    reader.update()
    assert reader.statuses == {3: failed}
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b': "succeeded"}\n')
    reader.update()
    assert reader.statuses[4] is journal.SUCCEEDED
    writer.note(event="end")
    reader.update()
    assert reader.ended


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    assert not journal.is_locked(tmp_path)
    lock = journal.take_lock(tmp_path)
    assert lock is not None
    assert journal.is_locked(tmp_path)
    assert journal.take_lock(tmp_path, patience=0.05) is None
    os.close(lock)
    assert not journal.is_locked(tmp_path)


def test_every_attempt_has_a_tag_of_its_own() -> None:
    places = [Path("/a/b"), Path("/a/B"), Path("/a/ü\n")]
    tags = {plan(directory=place, attempt=i).tag for place in places for i in range(2)}
    assert len(tags) == 6
    assert all(tag.isascii() and "/" not in tag for tag in tags)


def test_mounts_are_quoted() -> None:
    assert mount_option(Mount('/a,b"c', "/t")) == 'type=bind,"source=/a,b""c",destination=/t,ro'


def test_a_journal_is_read_by_several_threads_and_no_line_is_lost(tmp_path: Path) -> None:
    import threading

    count, journal_file = 3000, tmp_path / "events.jsonl"
    journal_file.touch()
    reader = journal.Reader(tmp_path)
    over = threading.Event()

    def follow() -> None:
        while not over.is_set():
            reader.update()

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    with journal_file.open("a") as file:
        for element in range(count):
            file.write(f'{{"element": {element}, "state": "succeeded", "time": 1.0}}\n')
            file.flush()
            # One line at a time is what several readers see at once.
            while element not in reader.statuses and all(map(threading.Thread.is_alive, threads)):
                time.sleep(0)
    over.set()
    for thread in threads:
        thread.join()
    reader.update()
    assert len(reader.statuses) == count
