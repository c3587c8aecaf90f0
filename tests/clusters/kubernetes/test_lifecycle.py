"""How a Kubernetes starts and ends: two side by side, a starter that is killed, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.clusters.machines.network import ip

pytestmark = pytest.mark.kubernetes

START = """
import sys
from pathlib import Path
from tests.clusters.kubernetes.cluster import Kubernetes
Kubernetes(Path(sys.argv[1]), with_parent=True).up()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place with a hostile name for a cluster, of which nothing is left at the end."""
    # No colon: the official client would take it for two files.
    directory = Path(tempfile.mkdtemp(prefix="cx k8s ' \"ä,"))
    yield directory
    assert not directory.exists()


def groups(cluster: Kubernetes) -> list[Path]:
    """The control groups of its machines."""
    names = set()
    for machine in cluster.machines:
        lines = Path(f"/proc/{machine.pid}/cgroup").read_text().splitlines()
        names |= {line.rpartition("/")[2] for line in lines} - {""}
    walked = os.walk("/sys/fs/cgroup")  # where others come and go
    return [Path(path, name) for path, children, _ in walked for name in children if name in names]


def mentions(directory: Path) -> list[str]:
    """The processes that have it on their command line, or see what is mounted in it."""
    # Spaces and quotes are written in other ways there.
    unique = directory.name[-8:].encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            shown = (entry / "cmdline").read_bytes() + (entry / "mountinfo").read_bytes()
        except OSError:
            continue
        if unique in shown:
            found.append(entry.name)
    return found


def test_a_second_one_whose_starter_is_killed_leaves_nothing(
    own_kubernetes: Kubernetes, directory: Path
) -> None:
    other = Kubernetes(directory, with_parent=True)
    command = [sys.executable, "-c", START, str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    try:
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            assert process.stdout.readline() == "up\n", process.wait(60)
            assert other.configuration.url != own_kubernetes.configuration.url
            other.wait_for_nodes()
            own_kubernetes.wait_for_nodes()
            host, its_groups = other.network.host, groups(other)
            assert its_groups and f"{host}/" in ip("-oneline", "address")
            assert mentions(directory)
            process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not any(it.running() for it in other.machines), 60)
    finally:
        other.down()
    assert not [path for path in its_groups if path.exists()]
    assert wait_until(lambda: not mentions(directory), 30), mentions(directory)
    assert f"{host}/" not in ip("-oneline", "address")
    own_kubernetes.wait_for_nodes()
    other.down()


@pytest.mark.test_all
@pytest.mark.usefixtures("own_kubernetes")
def test_it_starts_again_where_one_was_killed(directory: Path) -> None:
    other = Kubernetes(directory, with_parent=True)
    try:
        other.up()
        other.kubectl("create", "namespace", "before")
        os.kill(other.network.hub, signal.SIGKILL)
        other.control.kill()
        other.up()
        other.wait_for_nodes()
        # It is a new one: what another network's machines knew is of no use in this one.
        assert "before" not in other.kubectl("get", "namespaces")
    finally:
        other.down()
    assert wait_until(lambda: not mentions(directory), 30), mentions(directory)


def test_down_and_logs_are_fine_where_nothing_was_started(directory: Path) -> None:
    cluster = Kubernetes(directory)
    with pytest.raises(StartError, match="not up"):
        cluster.env()
    assert "== node2" in cluster.logs()
    cluster.down()
    assert not directory.exists()
