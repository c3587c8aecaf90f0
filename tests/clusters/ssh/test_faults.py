"""SSH over a bad line: uploads that break off, connections that are slow or stand still."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.clusters.daemon import wait_until
from tests.clusters.faults.proxy import Proxy
from tests.clusters.ssh.cluster import Host

pytestmark = pytest.mark.ssh

SIZE = 16 * 2**20


@pytest.fixture
def line(ssh_host: Host) -> Iterator[Proxy]:
    """The line to the host, which the test can spoil."""
    with Proxy((ssh_host.sshd.address, ssh_host.sshd.port)) as proxy:
        yield proxy


@pytest.fixture
def client(ssh_host: Host, line: Proxy) -> Iterator[paramiko.SSHClient]:
    with paramiko.SSHClient() as made:
        known = paramiko.HostKeys(str(ssh_host.sshd.known_hosts))
        ((_, keys),) = known.items()
        for kind, key in keys.items():
            made.get_host_keys().add(f"[{line.host}]:{line.port}", kind, key)
        made.connect(
            line.host,
            line.port,
            username=ssh_host.user,
            key_filename=str(ssh_host.sshd.key(ssh_host.user)),
            allow_agent=False,
            look_for_keys=False,
            timeout=60,
            banner_timeout=60,
            auth_timeout=60,
        )
        yield made


def through(line: Proxy, host: Host, *command: str) -> list[str]:
    """What runs a command on the host with OpenSSH over the line."""
    options = (f"HostName={line.host}", f"Port={line.port}", f"HostKeyAlias={host.sshd.address}")
    ssh, *rest = host.ssh(*command)
    return [ssh, *(f"-o{option}" for option in options), *rest]


def size(host: Host, name: str) -> int:
    """How much of a file is on the host; -1 if nothing is."""
    found = host.machine.run("stat", "-c%s", f"/home/{host.user}/{name}", check=False).stdout
    return int(found or -1)


def test_an_sftp_upload_breaks_off_in_the_middle(
    ssh_host: Host, line: Proxy, client: paramiko.SSHClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(SIZE))
    with client.open_sftp() as sftp:
        line.cut_after(SIZE // 2)
        with pytest.raises((OSError, EOFError, paramiko.SSHException)):
            sftp.put(str(file), "uploaded")
        transport = client.get_transport()
        assert transport
        assert wait_until(lambda: not transport.is_active(), 60)
    assert 0 < size(ssh_host, "uploaded") < SIZE
    assert line.connections == 0


def test_an_upload_by_openssh_breaks_off_and_the_next_is_whole(ssh_host: Host, line: Proxy) -> None:
    data = os.urandom(SIZE)
    line.cut_after(SIZE // 2)
    done = subprocess.run(
        through(line, ssh_host, "cat > piped"),
        input=data,
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 255
    assert b"onnection" in done.stderr or b"roken pipe" in done.stderr, done.stderr
    assert 0 < size(ssh_host, "piped") < SIZE
    again = through(line, ssh_host, "cat > piped")
    subprocess.run(again, input=data, check=True, capture_output=True, timeout=120)
    assert size(ssh_host, "piped") == SIZE


def test_a_slow_line_makes_every_question_slow(line: Proxy, client: paramiko.SSHClient) -> None:
    line.delay(0.2)
    start = time.monotonic()
    _, output, _ = client.exec_command("echo there")
    assert output.read() == b"there\n"
    # Opening the channel is one round trip, and the command another.
    assert time.monotonic() - start >= 0.8


def test_a_connection_that_stands_still_goes_on(line: Proxy, client: paramiko.SSHClient) -> None:
    given, output, _ = client.exec_command("cat")
    line.stall()
    given.write("word\n")
    given.flush()
    output.channel.settimeout(0.5)
    with pytest.raises(TimeoutError):
        output.channel.recv(5)
    line.heal()
    output.channel.settimeout(60)
    assert output.channel.recv(5) == b"word\n"


def test_a_host_that_refuses_connections(ssh_host: Host, line: Proxy) -> None:
    line.refuse()
    done = subprocess.run(
        through(line, ssh_host, "true"), check=False, capture_output=True, timeout=60
    )
    assert done.returncode == 255
    assert b"Connection refused" in done.stderr
