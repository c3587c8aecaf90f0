"""The network of a cluster: a bridge in a namespace of its own, and one link to this machine."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.daemon import Daemon, StartError, wait_until

PREFIX = "10.213"
"""Networks are ``10.213.N.0/24``; N is claimed by the name of the interface on this machine."""


def ip(*arguments: str, inside: int | None = None, check: bool = True) -> str:
    """What ``ip ARGUMENTS`` prints, in the network namespace of the process ``inside``."""
    enter = () if inside is None else ("nsenter", f"--net=/proc/{inside}/ns/net", "--")
    done = subprocess.run(
        [*enter, "ip", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    if check and done.returncode != 0:
        raise StartError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Network:
    """A network with its state in ``directory``; ``with_parent`` ends it with its starter.

    This machine is ``.1`` in it, and reaches every machine in it by its address.
    """

    directory: Path
    with_parent: bool = False

    @property
    def host(self) -> str:
        """The address of this machine: what services for the machines listen on."""
        return self.address(1)

    def address(self, number: int) -> str:
        """The address of machine ``number`` (2 to 254)."""
        return f"{PREFIX}.{self._subnet}.{number}"

    @property
    def hub(self) -> int:
        """The process that holds the namespace with the bridge."""
        return self._daemon.pid

    @property
    def hosts(self) -> Path:
        """What the machines see as ``/etc/hosts``."""
        return self.directory / "hosts"

    def running(self) -> bool:
        """Whether it is there; what was started with a process is so for a moment after its end."""
        return self._daemon.running()

    def up(self) -> None:
        """Make it; fine if it is there already."""
        if self.running():
            return
        self.down()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._daemon.start()
        ip("link", "set", "lo", "up", inside=self.hub)
        ip("link", "add", "hub", "type", "bridge", inside=self.hub)
        ip("link", "set", "hub", "up", inside=self.hub)
        number = self._claim()
        (self.directory / "subnet").write_text(str(number))
        ip("link", "set", "uplink", "master", "hub", "up", inside=self.hub)
        ip("address", "add", f"{self.host}/24", "dev", _interface(number))
        ip("link", "set", _interface(number), "up")
        self.hosts.write_text(f"127.0.0.1 localhost\n{self.host} testhost\n")

    def down(self) -> None:
        """Remove it, its interface on this machine too; fine if it is not there."""
        self._daemon.stop()
        if (self.directory / "subnet").exists():
            name = _interface(self._subnet)
            # The kernel removes the interfaces of a namespace that has ended a little later.
            if not wait_until(lambda: not Path(f"/sys/class/net/{name}").exists(), 30):
                raise StartError(f"the interface {name} stays though its namespace has ended")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _claim(self) -> int:
        """A free N: whoever makes the interface of that name first has it."""
        taken = ip("route", "show")
        for number in random.sample(range(1, 255), 254):
            if f"{PREFIX}.{number}.0/24" in taken:
                continue
            # The test of whether it was made is whether it is in our hub: the kernel makes a
            # pair as one, or not at all.
            ip(
                *("link", "add", _interface(number), "type", "veth"),
                *("peer", "name", "uplink", "netns", str(self.hub)),
                check=False,
            )
            if "uplink" in ip("-oneline", "link", "show", inside=self.hub):
                return number
        raise StartError(f"no subnet of {PREFIX}.0.0/16 is free, or root may not add interfaces")

    @property
    def _subnet(self) -> int:
        try:
            return int((self.directory / "subnet").read_text())
        except FileNotFoundError:
            raise StartError(f"the network in {self.directory} is not up") from None

    @property
    def _daemon(self) -> Daemon:
        directory = self.directory
        return Daemon(
            name="hub",
            command=("unshare", "--net", "sleep", "infinity"),
            directory=directory,
            ready=lambda: self._daemon.command_name() == "sleep",
            with_parent=self.with_parent,
        )


def _interface(number: int) -> str:
    return f"cx{PREFIX.replace('.', '-')}-{number}"
