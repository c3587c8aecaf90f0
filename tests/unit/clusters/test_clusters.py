"""Opening targets, starting programs, and the files of the local target."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import open_cluster
from clustrix_containers.clusters.local import LocalCluster, journal
from clustrix_containers.clusters.local.attempt import AttemptSpec
from clustrix_containers.containers.container import ContainerSpec, Mount
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
    ("options", "message"),
    [
        ({"runtme": "docker"}, "runtme"),
        ({"limits": "none"}, "invalid limits"),
        ({"max_parallel": 0}, "at least 1"),
    ],
)
def test_a_wrong_option_is_reported(options: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        open_cluster("local", options)


def test_an_unknown_runtime_is_reported() -> None:
    with pytest.raises(ClusterError, match="unknown runtime 'podman'"):
        LocalCluster(runtime="podman").check_options({})


def test_options_at_the_call_are_checked() -> None:
    cluster = LocalCluster(runtime="namespaces")
    cluster.check_options({})
    cluster.check_options({"grace": 0})
    for options, message in (
        ({"partition": "x"}, "no option 'partition'"),
        ({"grace": "long"}, "invalid grace: 'long'"),
        ({"grace": -1}, "invalid grace: -1"),
        ({"network": "host"}, "the sandbox runtime has no network modes"),
    ):
        with pytest.raises(ClusterError, match=message) as caught:
            cluster.check_options(options)
        assert caught.value.option == next(iter(options))


def test_capabilities_depend_on_the_runtime() -> None:
    capabilities = LocalCluster(runtime="namespaces").capabilities
    assert (capabilities.images, capabilities.gpus, capabilities.retries) == (
        "layout",
        False,
        False,
    )
    # Runs can be watched where their runtime does not work.
    assert LocalCluster(runtime="podman").capabilities.images == "layout"


def spec(**changes: object) -> AttemptSpec:
    values: dict[str, object] = {
        "run": "r", "attempt": 0, "image": "i", "elements": range(10), "directory": Path("/d"),
        "runtime": "sandbox", "method": "namespaces", "timeout": 1.5, "max_parallel": 2,
        "container": ContainerSpec("/r", ("a",), {"A": "ü\n"}, (Mount("/s", "/t", True),)),
        "pool": Path("/pool"),
    }  # fmt: skip
    return AttemptSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("elements", [range(10_000), range(0, 9, 2), (5, 1)])
def test_a_specification_survives_its_file(elements: object) -> None:
    made = spec(elements=elements)
    data = made.to_json()
    assert AttemptSpec.from_json(data) == made
    assert len(data) < 1000
    with pytest.raises(ClusterError, match="is damaged"):
        AttemptSpec.from_json(data[:-1])


def test_a_journal_is_read_bit_by_bit(tmp_path: Path) -> None:
    writer, reader = journal.Writer(tmp_path), journal.Reader(tmp_path)
    reader.update()
    assert reader.started is None
    writer.started(1, "h")
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
    assert reader.statuses[4].state is State.SUCCEEDED
    writer.ended()
    reader.update()
    assert reader.ended


def test_every_attempt_has_a_tag_of_its_own() -> None:
    places = [Path("/a/b"), Path("/a/B"), Path("/a/ü\n")]
    tags = {spec(directory=place, attempt=i).tag for place in places for i in range(2)}
    assert len(tags) == 6
    assert all(tag.isascii() and "/" not in tag for tag in tags)


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
