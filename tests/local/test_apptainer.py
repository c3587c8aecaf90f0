"""The local target through a real Apptainer, on the same unpacked root as the sandbox."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustrix_containers.api.status import Cause, State
from clustrix_containers.clusters.local import LocalCluster
from clustrix_containers.errors import ClusterError

from .conftest import Bench, wait_for
from .images import Layout
from .test_sandbox import INSPECT, TREE, commands, nothing_left, supervisor, unique

pytestmark = pytest.mark.apptainer


@pytest.fixture
def bench(
    layout: Layout,
    cache: Path,
    tmp_path: Path,
    apptainer_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    monkeypatch.setenv("PATH", f"{apptainer_path}:{os.environ['PATH']}")
    made = Bench(layout, tmp_path, LocalCluster(runtime="apptainer", cache=cache, grace=1.0))
    yield made
    made.close()


def test_values_errors_and_output(bench: Bench) -> None:
    code = "def f(x):\n    print('say', x)\n    return 1 / x"
    task = bench.task(code, [(2,), (0,)])
    handles = bench.submit(task)
    first, second = bench.wait(handles)
    assert (first.state, second.state) == (State.SUCCEEDED, State.FAILED), bench.output(handles)
    assert second.message == "ZeroDivisionError: division by zero"
    assert bench.value(task) == 0.5
    assert bench.output(handles) == "say 2\n"


def test_the_container_is_isolated(bench: Bench) -> None:
    task = bench.task(INSPECT, [(sys.prefix,)], env={"MINE": "a 'b\"\n"})
    handles = bench.submit(task)
    status = bench.wait(handles)[0]
    assert status.state is State.SUCCEEDED, bench.output(handles)
    value = bench.value(task)
    assert value["uid"] == (os.geteuid() or 65534)
    assert value["caps"] == {0}
    assert value["no_new_privs"] == "1"
    assert value["writable"] == ["/tmp", "/dev/shm"]
    assert value["host"] is False
    env = value["env"]
    assert (env["HOME"], env["FROM_IMAGE"], env["MINE"]) == ("/tmp", "1", "a 'b\"\n")


def test_limits(bench: Bench) -> None:
    code = "import time\ndef f(n):\n    d = bytearray(b'x') * (n << 20)\n    time.sleep(100)"
    task = bench.task(code, [(1,), (256,)], timeout=1, memory=128 << 20)
    slow, hungry = bench.run(task)
    assert (slow.cause, hungry.cause) == (Cause.TIME_LIMIT, Cause.MEMORY_LIMIT)


def test_cancel(bench: Bench) -> None:
    name = unique()
    handles = bench.submit(bench.task(TREE, [(name,)]))
    wait_for(lambda: f"sleep {name}" in commands())
    bench.cluster.cancel(handles)
    assert bench.wait(handles)[0].state is State.CANCELLED
    wait_for(lambda: f"sleep {name}" not in commands())
    wait_for(lambda: nothing_left(bench))


def test_a_killed_supervisor_takes_its_containers_along(bench: Bench) -> None:
    name = unique()
    handles = bench.submit(bench.task(TREE, [(name,)]))
    wait_for(lambda: f"sleep {name}" in commands())
    os.kill(supervisor(handles), signal.SIGKILL)
    status = bench.wait(handles)[0]
    assert (status.state, status.cause) == (State.FAILED, Cause.DIED)
    wait_for(lambda: f"sleep {name}" not in commands())
    wait_for(lambda: nothing_left(bench))


def test_no_apptainer_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="neither apptainer nor singularity is on PATH"):
        bench.cluster.submit(bench.task("def f(): pass"))
