"""The machines that clusters are made of: real namespaces, and nothing left of them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network

pytestmark = pytest.mark.machines


@pytest.fixture
def pair(
    machine_directory: Path, machine_root: Path, network: Network
) -> Iterator[tuple[Machine, Machine]]:
    shared = machine_directory / "shared"
    shared.mkdir()
    (shared / "file").write_text("from outside\n")
    binds = {shared: "/mnt/a 'b\"", shared / "file": "/etc/one file"}
    one = Machine("one", machine_directory / "1", machine_root, network, 2, binds, True)
    two = Machine("two", machine_directory / "2", machine_root, network, 3, {}, True)
    one.up()
    two.up()
    yield one, two
    one.down()
    two.down()
    (shared / "file").unlink()
    shared.rmdir()


def answers(machine: Machine, port: int = 9) -> bool:
    """Whether a machine's kernel answers, if only with RST."""
    with socket.socket() as connection:
        connection.settimeout(1)
        try:
            connection.connect((machine.address, port))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return True


def reaches(here: Machine, name: str) -> bool:
    return here.run("ping", "-c1", "-W1", name, check=False).returncode == 0


def test_it_is_a_machine_of_its_own(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    assert one.run("hostname").stdout == "one\n"
    assert one.run("cat", "/mnt/a 'b\"/file", "/etc/one file").stdout == "from outside\n" * 2
    assert "init" in one.run("ps", "-p", "1", "-o", "comm=").stdout
    assert len(one.run("ps", "-e", "-o", "pid=").stdout.split()) == 2
    assert set(one.run("sh", "-c", "cut -d: -f3 /proc/self/cgroup").stdout.split()) == {"/"}
    done = one.run("sh", "-c", "cat; exit 3", text="ü", check=False)
    assert (done.returncode, done.stdout) == (3, "ü")
    with pytest.raises(StartError, match="one: false ended with 1"):
        one.run("false")


def test_an_ordinary_user_is_one_inside(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    one.run("useradd", "--create-home", "alice")
    assert one.run("sh", "-c", 'id -un; pwd; echo "$HOME"', user="alice").stdout.split() == [
        "alice",
        "/home/alice",
        "/home/alice",
    ]


def test_machines_reach_each_other_and_the_host_them(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    assert reaches(one, "two")
    assert reaches(two, "testhost")
    assert answers(one)


def test_a_paused_machine_stands_still_and_goes_on(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    command = one.command("sh", "-c", "while read -r line; do echo $line; done")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1\n"
        one.pause()
        process.stdin.write(b"2\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 0.5)
        assert not ready
        one.resume()
        assert process.stdout.readline() == b"2\n"
        process.stdin.close()


def test_a_cable_is_pulled_and_plugged_in(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    two.cut()
    assert not reaches(one, "two")
    two.reconnect()
    assert wait_until(lambda: reaches(one, "two"), 30)
    two.lose(100)
    assert not all(reaches(one, "two") for _ in range(3))
    two.reconnect()
    assert wait_until(lambda: reaches(one, "two"), 30)


def test_a_machine_that_lost_power_comes_back_with_its_disk(
    pair: tuple[Machine, Machine],
) -> None:
    one, two = pair
    one.run("sh", "-c", "echo kept > /root/file; echo lost > /run/file")
    with subprocess.Popen(one.command("sleep", "1000")) as process:
        assert wait_until(lambda: "sleep" in one.run("ps", "-e").stdout, 30)
        one.kill()
        assert process.wait(30) != 0
    assert not one.running()
    with pytest.raises(StartError, match="one is off"):
        one.run("true")
    assert not reaches(two, "one")
    one.up()
    assert one.run("cat", "/root/file").stdout == "kept\n"
    assert one.run("ls", "/run/file", check=False).returncode != 0
    assert wait_until(lambda: reaches(two, "one"), 30)


def test_a_paused_machine_can_be_switched_off(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    one.pause()
    one.kill()
    assert not one.running()


def remains(directory: Path) -> str:
    """What mentions the directory or its machines: mounts, processes, interfaces, groups."""
    mounts = Path("/proc/self/mountinfo").read_text()
    own = sha256(os.fsencode(directory / "left")).hexdigest()[:12]
    groups = subprocess.run(
        ["find", "/sys/fs/cgroup", "-name", f"cx-left-{own}"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    processes = ""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in line and int(entry.name) != os.getpid():
            processes += f"{entry.name} {line!r}\n"
    return processes + groups + (mounts if str(directory) in mounts else "")


START = """
import os, sys
from pathlib import Path
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
directory, root = Path(sys.argv[1]), Path(sys.argv[2])
network = Network(directory / "network", with_parent=True)
network.up()
machine = Machine("left", directory / "left", root, network, 2, with_parent=True)
machine.up()
print(network.host, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_test_run_leaves_goes_with_the_next_up(
    machine_directory: Path, machine_root: Path
) -> None:
    command = [sys.executable, "-c", START, str(machine_directory), str(machine_root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    network = Network(machine_directory / "network", with_parent=True)
    machine = Machine("left", machine_directory / "left", machine_root, network, 2, {}, True)
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        host = process.stdout.readline().strip()
        assert host == network.host, process.wait(30)
        assert machine.running()
        process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not machine.running() and not network.running(), 30)
    network.up()
    machine.up()
    assert machine.run("hostname").stdout == "left\n"
    machine.down()
    network.down()
    assert not remains(machine_directory)


def test_two_networks_do_not_meet(machine_directory: Path, network: Network) -> None:
    other = Network(machine_directory / "other", with_parent=True)
    other.up()
    assert other.host != network.host
    other.down()
    assert Path(f"/proc/{network.hub}").is_dir()
