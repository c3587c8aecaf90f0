"""Hosts by SSH: real logins with OpenSSH and paramiko, and Apptainer for an ordinary user."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.sshd import Entry, Sshd, write_config
from tests.clusters.ssh.cluster import VARIANTS, Host

pytestmark = pytest.mark.ssh

Hosts = Callable[[str], Host]

# What `make test` leaves to `make test-all` are the other ways in which a site differs.
EACH = [
    pytest.param(name, marks=[] if name in ("plain", "noisy") else pytest.mark.test_all)
    for name in VARIANTS
]


def ssh(host: Host, *command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        host.ssh(*command),
        check=False,
        capture_output=True,
        input=data,
        env=host.environment(),
        timeout=120,
    )


@pytest.fixture
def image(busybox_root: Path) -> bytes:
    """A tar of a small root file system, ``root``."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.add(busybox_root, "root")
    return made.getvalue()


@pytest.mark.parametrize("variant", EACH)
def test_an_ordinary_user_runs_a_container(ssh_hosts: Hosts, variant: str, image: bytes) -> None:
    host = ssh_hosts(variant)
    unsquash = "" if host.variant.site.fuse else "--unsquash"
    done = ssh(
        host,
        'cd && rm -rf root && tar -x && mkdir -p "i n" && echo "from outside" > "i n/file" &&'
        " apptainer --quiet build --force busybox.sif root &&"
        f' apptainer --quiet exec --containall {unsquash} --bind "i n:/mnt/it" busybox.sif'
        " sh -c 'id -u; cat /mnt/it/file; exit 7'",
        data=image,
    )
    assert (done.returncode, done.stdout[-18:]) == (7, b"2001\nfrom outside\n"), done.stderr


def test_it_has_no_python(ssh_host: Host) -> None:
    script = r"find / -xdev -name 'python*' -perm /111 -type f -o -name 'libpython*' 2> /dev/null"
    assert not ssh_host.machine.run("sh", "-c", script, check=False).stdout


@pytest.mark.test_all
def test_without_fuse_a_sif_cannot_be_mounted(ssh_hosts: Hosts, image: bytes) -> None:
    done = ssh(
        ssh_hosts("no-fuse"),
        "rm -rf root && tar -x && apptainer build --force b.sif root > log 2>&1"
        " && apptainer exec b.sif true",
        data=image,
    )
    assert done.returncode == 255
    assert b"/dev/fuse: Permission denied" in done.stderr


@pytest.mark.test_all
def test_without_squashfuse_a_sif_is_unpacked_at_every_start(
    ssh_hosts: Hosts, image: bytes
) -> None:
    done = ssh(
        ssh_hosts("no-squashfuse"),
        "rm -rf root && tar -x && apptainer build --force b.sif root > log 2>&1"
        " && apptainer exec b.sif true",
        data=image,
    )
    assert done.returncode == 0, done.stderr
    assert b"Converting SIF file to temporary sandbox" in done.stderr


@pytest.mark.test_all
def test_without_overlay_nothing_can_be_written_over_an_image(
    ssh_hosts: Hosts, image: bytes
) -> None:
    done = ssh(
        ssh_hosts("no-overlay"),
        "rm -rf root && tar -x && apptainer exec --writable-tmpfs root touch /made",
        data=image,
    )
    assert done.returncode != 0
    assert b"verlay" in done.stderr


def reached(host: Host, port: int = 22) -> bool:
    """Whether a connection from this machine comes about."""
    try:
        with socket.create_connection((host.machine.address, port), timeout=2):
            return True
    except OSError:
        return False


def test_the_target_is_reached_through_its_jump_host_only(ssh_hosts: Hosts) -> None:
    host = ssh_hosts("jump")
    assert not reached(host)
    done = ssh(host, "hostname; echo $SSH_CLIENT")
    assert done.stdout.decode().split()[:2] == ["host", host.jump.address], done.stderr
    host.jump_sshd.stop()
    try:
        assert ssh(host, "hostname").returncode == 255
    finally:
        host.up()
    assert ssh(host, "hostname").stdout == b"host\n"


def test_a_configuration_and_keys_have_hostile_paths(ssh_host: Host, tmp_path: Path) -> None:
    hostile = tmp_path / "it's %h \"ä\\ #x"
    shutil.copytree(ssh_host.sshd.directory, hostile)
    write_config(hostile / "config", [Entry("it", Sshd(ssh_host.machine, hostile))])
    command = ["ssh", "-F", str(hostile / "config"), "it", "id -un"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "alice\n", done.stderr
    behind = Entry("behind", Sshd(ssh_host.machine, hostile), jump="it")
    with pytest.raises(StartError, match="ProxyJump cannot use a file with a space"):
        write_config(hostile / "config", [behind])


def connection(host: Host) -> paramiko.SSHClient:
    """A connection by key that knows the host, and no other one."""
    client = paramiko.SSHClient()
    client.load_host_keys(str(host.sshd.known_hosts))
    client.connect(
        host.sshd.address,
        username=host.user,
        key_filename=str(host.sshd.key(host.user)),
        allow_agent=False,
        look_for_keys=False,
        timeout=60,
        banner_timeout=60,
        auth_timeout=60,
    )
    return client


def asked(host: Host, transport: paramiko.Transport, password: str) -> list[list[str]]:
    """The questions that are asked, in their rounds, while one logs in."""
    rounds: list[list[str]] = []

    def answer(title: str, text: str, prompts: list[tuple[str, bool]]) -> list[str]:
        rounds.append([prompt for prompt, _ in prompts])
        return [password for _ in prompts]

    transport.auth_interactive(host.user, answer)
    return rounds


@pytest.fixture
def transports() -> Iterator[Callable[[Host], paramiko.Transport]]:
    opened: list[paramiko.Transport] = []

    def transport(host: Host) -> paramiko.Transport:
        made = paramiko.Transport((host.sshd.address, host.sshd.port))
        opened.append(made)
        made.banner_timeout = made.auth_timeout = 60
        made.start_client(timeout=60)
        return made

    yield transport
    for it in opened:
        it.close()


@pytest.mark.parametrize(
    "variant", ["interactive", pytest.param("two-factor", marks=pytest.mark.test_all)]
)
def test_questions_are_asked_and_answered(
    ssh_hosts: Hosts, transports: Callable[[Host], paramiko.Transport], variant: str
) -> None:
    host = ssh_hosts(variant)
    transport = transports(host)
    if variant == "two-factor":
        key = paramiko.Ed25519Key(filename=str(host.sshd.key()))
        assert transport.auth_publickey(host.user, key) == ["keyboard-interactive"]
    rounds = asked(host, transport, host.sshd.password)
    assert rounds[0] == ["Password: "] or "assword" in rounds[0][0]
    # PAM's last word has no question in it, and wants an answer all the same.
    assert rounds[1:] == [[]]
    channel = transport.open_session()
    channel.exec_command("id -un")
    assert channel.makefile().read() == b"alice\n"


def test_a_wrong_answer_and_a_key_alone_do_not_open(
    ssh_hosts: Hosts, transports: Callable[[Host], paramiko.Transport]
) -> None:
    host = ssh_hosts("interactive")
    with pytest.raises(paramiko.AuthenticationException):
        asked(host, transports(host), "wrong")
    with pytest.raises(paramiko.BadAuthenticationType):
        transports(host).auth_publickey(
            host.user, paramiko.Ed25519Key(filename=str(host.sshd.key()))
        )


def test_one_login_serves_many_commands(ssh_hosts: Hosts) -> None:
    """As people do it where every login asks: OpenSSH keeps the connection."""
    host = ssh_hosts("interactive")
    socket_path = host.directory / "control"
    master = host.ssh()
    shared = ("-o", f"ControlPath={socket_path}")
    subprocess.run(
        [*master[:-1], *shared, "-o", "ControlMaster=yes", "-f", "-N", master[-1]],
        check=True,
        env=host.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    try:
        silent = {**os.environ, "SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force"}
        for _ in range(2):
            done = subprocess.run(
                [*master[:-1], *shared, master[-1], "id -un"],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=silent,
                timeout=60,
            )
            assert done.stdout == b"alice\n"
    finally:
        subprocess.run([*master[:-1], *shared, "-O", "exit", master[-1]], check=True)


def test_the_noise_is_there(ssh_hosts: Hosts, image: bytes) -> None:
    host = ssh_hosts("noisy")
    done = ssh(host, 'pwd; ls -d /tmp; echo "$PYTHONPATH $APPTAINER_BINDPATH"')
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("Welcome")
    assert lines[1] == "/opt/site"
    assert lines[2].startswith("drwxrwxrwt")
    assert lines[3] == "/opt/site/python /opt/site"
    assert b"quota" in done.stderr
    # It reaches into the container as well.
    inside = (
        "cd && rm -rf root && tar -x && apptainer --quiet exec --containall root ls -d /opt/site"
    )
    assert ssh(host, inside, data=image).stdout.endswith(b"/opt/site\n")


def test_a_connection_has_so_many_sessions(ssh_host: Host) -> None:
    with connection(ssh_host) as client:
        transport = client.get_transport()
        assert transport
        channels = [transport.open_session() for _ in range(ssh_host.sshd.sessions)]
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
        channels[0].close()
        assert wait_until(lambda: opens(transport), 30)


def opens(transport: paramiko.Transport) -> bool:
    try:
        transport.open_session().close()
    except paramiko.ChannelException:
        return False
    return True


def test_no_jump_is_made_from_a_host_that_forbids_it(ssh_host: Host) -> None:
    with connection(ssh_host) as client:
        transport = client.get_transport()
        assert transport
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 0))


def test_connections_that_are_dropped_end_and_new_ones_come(ssh_host: Host) -> None:
    with connection(ssh_host) as client:
        transport = client.get_transport()
        assert transport
        _, output, _ = client.exec_command("echo there; exec sleep 1000")
        assert output.readline() == "there\n"
        ssh_host.sshd.drop()
        assert not reached(ssh_host)
        assert wait_until(lambda: not transport.is_active(), 60)
        assert output.channel.recv_exit_status() == -1
    ssh_host.up()
    assert ssh(ssh_host, "true").returncode == 0


def test_a_host_that_lost_power_comes_back(ssh_host: Host) -> None:
    assert ssh(ssh_host, "echo kept > file").returncode == 0
    ssh_host.machine.kill()
    assert not reached(ssh_host)
    ssh_host.up()
    assert ssh(ssh_host, "cat file").stdout == b"kept\n"


def test_secrets_are_nobody_elses(ssh_host: Host) -> None:
    sshd = ssh_host.sshd
    for file in (sshd.key(), sshd.password_file, sshd.directory / "host_key"):
        assert file.stat().st_mode & 0o077 == 0
    assert sshd.password not in ssh_host.logs()
    done = ssh(ssh_host, "cat /etc/ssh/host_key")
    assert b"Permission denied" in done.stderr


START = """
import sys
from pathlib import Path
from tests.clusters.ssh.cluster import VARIANTS, Host
host = Host(Path(sys.argv[1]), VARIANTS["jump"], with_parent=True)
host.up()
print(host.machine.address, flush=True)
sys.stdin.read()
"""


def remains(name: str) -> list[str]:
    """Processes, mounts and control groups that know of a directory's name."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if name in line and int(entry.name) != os.getpid():
            found.append(line)
    return found


def test_after_a_killed_run_up_works_and_down_leaves_nothing() -> None:
    directory = Path(tempfile.mkdtemp(prefix="cx-ssh-killed-", dir="/tmp"))
    host = Host(directory, VARIANTS["jump"], with_parent=True)
    with subprocess.Popen(
        [sys.executable, "-c", START, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().strip() == host.machine.address
        process.send_signal(signal.SIGKILL)
    # What it had ends by itself, whether or not anybody comes back.
    assert wait_until(lambda: not remains(directory.name), 60), remains(directory.name)
    host.up()
    assert ssh(host, "hostname").stdout == b"host\n"
    host.down()
    assert not remains(directory.name)
    assert not directory.exists()


def test_what_is_not_up_has_logs_and_can_be_ended() -> None:
    host = Host(Path(tempfile.mkdtemp(prefix="cx-ssh-none-", dir="/tmp")), VARIANTS["jump"])
    assert "is off" in host.logs()
    host.down()
    host.down()
    assert not host.directory.exists()


def test_from_another_process_it_is_found_by_its_directory(ssh_host: Host) -> None:
    same = Host(ssh_host.directory, ssh_host.variant, with_parent=True)
    pid = same.machine.pid
    same.up()
    assert same.machine.pid == pid
    assert same.env()["CLUSTRIX_TEST_SSH_CONFIG"] == str(ssh_host.config)


def test_two_hosts_side_by_side(ssh_hosts: Hosts) -> None:
    one, two = ssh_hosts("plain"), ssh_hosts("noisy")
    assert one.machine.address != two.machine.address
    assert ssh(one, "touch here").returncode == 0
    assert ssh(two, "test -e ~/here").returncode == 1
