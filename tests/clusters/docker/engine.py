"""Starts ``dockerd`` beside whatever engine the machine has, touching none of its network."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import requests

from tests.clusters.daemon import Daemon, StartError, wait_until

GIVEN = "CLUSTRIX_TEST_DOCKER_HOST"
"""Names an engine to use instead of starting one, as ``DOCKER_HOST`` does."""


def given_host() -> str | None:
    """The engine that the environment names, if it names one."""
    return os.environ.get(GIVEN) or os.environ.get("DOCKER_HOST") or None


def answers(host: str) -> bool:
    """Whether an engine answers at ``host``."""
    if not host.startswith("unix://"):
        return _answers_sdk(host)
    # By hand: the SDK leaves an open socket behind for each try that is refused.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        try:
            connection.connect(host.removeprefix("unix://"))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


def _answers_sdk(host: str) -> bool:
    try:
        client = docker.DockerClient(base_url=host, timeout=10)
    except docker.errors.DockerException:
        return False
    try:
        return client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        return False
    finally:
        client.close()


def import_busybox(host: str, reference: str) -> None:
    """Make a small image in the engine from this machine's static busybox: no registry needed."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise StartError("busybox is not installed: run 'make setup-system' as root")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        applets = subprocess.run(
            [busybox, "--list"], check=True, capture_output=True, text=True
        ).stdout.split()
        for applet in sorted(set(applets) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    repository, _, tag = reference.rpartition(":")
    client = docker.DockerClient(base_url=host)
    try:
        client.api.import_image_from_data(archive.getvalue(), repository=repository, tag=tag)
    finally:
        client.close()


@dataclass(frozen=True)
class Engine:
    """A Docker engine that lives in ``directory``, which must be short: sockets allow 107 bytes.

    ``with_parent`` ends it when whoever started it ends. It has no bridge network:
    containers get ``none``, or ``host`` if they ask for it.
    """

    directory: Path
    with_parent: bool = False

    @property
    def host(self) -> str:
        return f"unix://{self.directory}/docker.sock"

    @property
    def _daemon(self) -> Daemon:
        own = self.directory
        return Daemon(
            name="dockerd",
            command=(
                "dockerd",
                f"--data-root={own}/data",
                f"--exec-root={own}/exec",
                f"--pidfile={own}/docker.pid",
                f"--host={self.host}",
                "--bridge=none",
                "--iptables=false",
                "--ip-forward=false",
                "--shutdown-timeout=5",
            ),
            directory=own,
            # A containerd that is asked under load why it is slow leaves its answer here.
            environment={"TMPDIR": str(own)},
            ready=lambda: answers(self.host),
            with_parent=self.with_parent,
        )

    def running(self) -> bool:
        """Whether its process is there."""
        return self._daemon.running()

    def up(self) -> None:
        """Start the engine and wait until it answers; fine if it is up already."""
        if self.running():
            return
        if os.geteuid() != 0:
            raise StartError(
                f"only root can start a Docker engine: name a running one in {GIVEN},"
                " or leave it out by name (--exclude docker)"
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._daemon.start()

    def env(self) -> Mapping[str, str]:
        return {GIVEN: self.host, "DOCKER_HOST": self.host}

    def target(self) -> str:
        return "targets:\n  docker: {type: local, runtime: docker, network: host}"

    def logs(self) -> str:
        return self._daemon.logs(200)

    def down(self) -> None:
        """End its containers, the engine and its containerd; unmount and remove all it had."""
        if not self.directory.exists():
            return
        if answers(self.host):
            # The engine gives each container its own time to end; ours have none to lose.
            self._remove_containers()
        self._daemon.stop()
        for pid in self._left_processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._left_processes(), 5)
        for mount in self._left_mounts():
            subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self.directory)

    def _remove_containers(self) -> None:
        client = docker.DockerClient(base_url=self.host)
        try:
            for container in client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True)
        finally:
            client.close()

    def _left_processes(self) -> list[int]:
        mark = os.fsencode(f"{self.directory}/")
        left = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                # A whole argument or its value, so that a shell that merely mentions it survives.
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(a.startswith(mark) or b"=" + mark in a for a in arguments):
                left.append(int(entry.name))
        return left

    def _left_mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [p for p in reversed(points) if p.startswith(f"{self.directory}/")]
