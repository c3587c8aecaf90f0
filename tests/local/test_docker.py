"""The local target through a real Docker engine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from clustrix_containers.api.status import Cause, State
from clustrix_containers.clusters.local import LocalCluster
from clustrix_containers.errors import ClusterError, MemoryLimitExceeded
from clustrix_containers.results.outcome import without_mark

from .conftest import Bench, wait_for
from .images import Layout
from .test_sandbox import INSPECT, TREE, commands, supervisor, unique

pytestmark = pytest.mark.docker


@pytest.fixture
def client(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    made = docker.from_env()
    yield made
    made.close()


@pytest.fixture
def bench(layout: Layout, cache: Path, tmp_path: Path, client: Any) -> Iterator[Bench]:
    made = Bench(
        layout, tmp_path, LocalCluster(runtime="docker", cache=cache, network="host", grace=1.0)
    )
    yield made
    made.close()
    ours = {"label": "io.clustrix-containers.attempt"}
    wait_for(lambda: client.containers.list(all=True, filters=ours) == [])


def test_values_errors_and_output(bench: Bench) -> None:
    code = "def f(x):\n    print('say', x)\n    return 1 / x"
    task = bench.task(code, [(2,), (0,)])
    handles = bench.submit(task)
    first, second = bench.wait(handles)
    assert (first.state, second.state) == (State.SUCCEEDED, State.FAILED), bench.output(handles)
    assert second.message == "ZeroDivisionError: division by zero"
    assert bench.value(task) == 0.5
    assert bench.output(handles) == "say 2\n"


def test_a_second_image_sends_only_its_own_layers(bench: Bench, client: Any) -> None:
    from clustrix_containers.clusters.local.staging import read_layout
    from clustrix_containers.containers import docker as runtime

    assert bench.run(bench.task("def f(): return 'a'", name="a"))[0].state is State.SUCCEEDED
    image = read_layout(bench.layout.image("def f(): return 'b'"))
    known = runtime._known_layers(client, image)
    assert known >= 2
    assert sum(map(len, runtime._archive(image, known))) < 100_000
    task = bench.task("def f(): return 'b'", name="b")
    assert bench.run(task)[0].state is State.SUCCEEDED
    assert bench.value(task) == "b"


def test_the_container_is_isolated(bench: Bench) -> None:
    task = bench.task(INSPECT, [(sys.prefix,)], shm=32 << 20, env={"MINE": "a 'b\"\n"})
    status = bench.run(task)[0]
    assert status.state is State.SUCCEEDED, status
    value = bench.value(task)
    assert value["uid"] == (os.geteuid() or 65534)
    assert value["caps"] == {0}
    assert value["no_new_privs"] == "1"
    assert value["writable"] == ["/tmp", "/dev/shm"]
    assert value["shm"] == 32 << 20
    assert value["host"] is False
    assert value["env"]["MINE"] == "a 'b\"\n"


def test_the_memory_limit(bench: Bench) -> None:
    code = "def f(): return len(bytearray(b'x') * (256 << 20))"
    status = bench.run(bench.task(code, memory=64 << 20))[0]
    assert (status.state, status.cause) == (State.FAILED, Cause.MEMORY_LIMIT), status
    assert type(without_mark(status, run="x", element=0)) is MemoryLimitExceeded


def test_the_time_limit(bench: Bench) -> None:
    status = bench.run(bench.task("import time\ndef f(): time.sleep(100)", timeout=0.3))[0]
    assert status.cause is Cause.TIME_LIMIT


def test_cancel(bench: Bench) -> None:
    name = unique()
    handles = bench.submit(bench.task(TREE, [(name,)]))
    wait_for(lambda: f"sleep {name}" in commands())
    bench.cluster.cancel(handles)
    assert bench.wait(handles)[0].state is State.CANCELLED
    assert f"sleep {name}" not in commands()


def test_a_killed_supervisor(bench: Bench) -> None:
    name = unique()
    handles = bench.submit(bench.task(TREE, [(name,)]))
    wait_for(lambda: f"sleep {name}" in commands())
    os.kill(supervisor(handles), signal.SIGKILL)
    status = bench.wait(handles)[0]
    assert (status.state, status.cause) == (State.FAILED, Cause.DIED)
    wait_for(lambda: f"sleep {name}" not in commands())


def test_no_engine_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ClusterError, match=r"no such socket: /nowhere/docker\.sock") as caught:
        bench.cluster.submit(bench.task("def f(): pass"))
    assert "DOCKER_HOST" in str(caught.value.hint)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(ClusterError, match="cannot see the run's directory"):
        bench.cluster.submit(bench.task("def f(): pass"))


def test_auto_takes_docker_first(client: Any) -> None:
    assert LocalCluster().chosen.runtime == "docker"
