"""One machine: started, run in, paused, cut off, switched off."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.clusters.daemon import Daemon, StartError, wait_until
from tests.clusters.machines.cgroups import Groups
from tests.clusters.machines.network import Network, ip

_BOOT = Path(__file__).with_name("boot.sh")
_JOIN = 'for group in $CGROUPS; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Machine:
    """A machine with its state in ``directory``: what it writes survives :meth:`kill`.

    ``root`` is its root file system, which stays as it is; ``binds`` are paths of this machine
    by their place inside. ``number`` gives its address in ``network``. With ``with_parent`` it
    ends when the thread that started it ends.
    """

    name: str
    directory: Path
    root: Path
    network: Network
    number: int
    binds: Mapping[Path, str] = field(default_factory=dict)
    with_parent: bool = False

    @property
    def address(self) -> str:
        return self.network.address(self.number)

    @property
    def pid(self) -> int:
        """Its first process, seen from here; 0 while it is off."""
        if not self._daemon.running():
            return 0
        parent = self._daemon.pid
        with contextlib.suppress(OSError, ValueError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            return int(children.split()[0]) if children.split() else 0
        return 0

    def running(self) -> bool:
        return self.pid != 0

    def up(self) -> None:
        """Switch it on, and wait until it is in its network; fine if it is on.

        With ``with_parent`` the thread that calls this is the parent.
        """
        if self.running():
            return
        if os.geteuid() != 0:
            raise StartError(f"only root can start the machine {self.name}")
        self._off()
        self.directory.mkdir(parents=True, exist_ok=True)
        hosts = self.directory / "hosts"
        hosts.unlink(missing_ok=True)
        hosts.hardlink_to(self.network.hosts)
        self._groups.make()
        self._daemon.start()
        self._connect()

    def down(self) -> None:
        """Switch it off, and remove all it had."""
        self._off()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """Power off: every process in it ends at once. :meth:`up` switches it on again."""
        self._off()

    def pause(self) -> None:
        """Stop all its processes where they are; its network answers no more."""
        self._groups.freeze(True)

    def resume(self) -> None:
        self._groups.freeze(False)

    def cut(self) -> None:
        """Pull the network cable."""
        ip("link", "set", self._port, "down", inside=self.network.hub)

    def reconnect(self) -> None:
        """Plug the cable in again, and lose nothing any more."""
        ip("link", "set", self._port, "up", inside=self.network.hub)
        self._filter("delete table inet losing", check=False)

    def lose(self, percent: int) -> None:
        """Drop that many in a hundred of the packets that reach it, at random (99.9 at most)."""
        self._filter(
            "table inet losing\ndelete table inet losing\n"
            "table inet losing {\nchain input {\ntype filter hook input priority 0\n"
            f'iifname "eth0" numgen random mod 1000 < {min(percent * 10, 999)} drop\n}}\n}}\n'
        )

    def command(self, *arguments: str | Path, user: str | None = None) -> tuple[str, ...]:
        """What runs ``arguments`` inside: as root in its ``/``, or as ``user`` at home."""
        pid = self.pid
        if not pid:
            raise StartError(f"the machine {self.name} is off")
        groups = " ".join(map(str, self._groups.directories))
        as_user: tuple[str, ...] = ()
        if user is not None:
            as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
            as_user += ("--reset-env", "sh", "-c", 'cd && exec "$@"', "sh")
        return (
            *("env", "-i", f"CGROUPS={groups}", f"PATH={PATH}", "LANG=C.UTF-8", "sh", "-c", _JOIN),
            *("sh", "nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid"),
            *("--cgroup", "--root", "--wd", "--", "env", "-u", "CGROUPS"),
            *as_user,
            *map(str, arguments),
        )

    def run(
        self,
        *arguments: str | Path,
        user: str | None = None,
        text: str = "",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait for it, ``timeout`` seconds at most; it reads ``text``.

        With ``check`` a failure is a :class:`StartError` with what the program printed.
        """
        done = subprocess.run(
            self.command(*arguments, user=user),
            check=False,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            input=text,
        )
        if check and done.returncode != 0:
            shown = " ".join(map(str, arguments))
            raise StartError(
                f"{self.name}: {shown} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def logs(self) -> str:
        """What its first process printed."""
        return self._daemon.logs()

    @property
    def _port(self) -> str:
        return f"port{self.number}"

    @property
    def _groups(self) -> Groups:
        return Groups(f"cx-{self.name}-{sha256(os.fsencode(self.directory)).hexdigest()[:12]}")

    @property
    def _daemon(self) -> Daemon:
        binds = [str(part) for pair in self.binds.items() for part in pair]
        groups = " ".join(map(str, self._groups.directories))
        return Daemon(
            name="machine",
            command=(
                *("sh", "-c", _JOIN, "sh"),
                *("unshare", "--fork", "--kill-child=KILL", "--propagation=private"),
                *("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"),
                *(str(_BOOT), str(self.directory), str(self.root), self.name, *binds),
            ),
            directory=self.directory,
            ready=self._booted,
            environment={"CGROUPS": groups, "PATH": PATH},
            with_parent=self.with_parent,
            death_signal="KILL",  # unshare heeds no other
        )

    def _booted(self) -> bool:
        pid = self.pid
        with contextlib.suppress(OSError):
            return bool(pid) and Path(f"/proc/{pid}/comm").read_text() == "init\n"
        return False

    def _connect(self) -> None:
        hub, pid = self.network.hub, self.pid
        # The same every time: others remember it, and would not find a machine that comes back.
        hardware = ":".join(f"{int(part):02x}" for part in ("2", "0", *self.address.split(".")))
        ip(
            *("link", "add", self._port, "netns", str(hub), "type", "veth"),
            *("peer", "name", "eth0", "address", hardware, "netns", str(pid)),
        )
        ip("link", "set", self._port, "master", "hub", "up", inside=hub)
        ip("link", "set", "lo", "up", inside=pid)
        ip("address", "add", f"{self.address}/24", "dev", "eth0", inside=pid)
        ip("link", "set", "eth0", "up", inside=pid)
        ip("route", "add", "default", "via", self.network.host, inside=pid)
        line = f"{self.address} {self.name}\n"
        if line not in self.network.hosts.read_text():
            with self.network.hosts.open("a") as hosts:
                hosts.write(line)

    def _off(self) -> None:
        pid = self.pid
        with contextlib.suppress(OSError, StartError):
            self._groups.freeze(False)  # what is frozen cannot end
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not wait_until(lambda: not self._daemon.running(), 30):
                raise StartError(f"the machine {self.name} does not end")
        self._daemon.stop()
        for left in self._groups.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        self._groups.remove()
        if (self.network.directory / "hub.pid").exists() and self.network.hub:
            # Its end of the cable may outlive it for a moment, and the next one has that name.
            gone = re.compile(rf"\b{self._port}[@:]")
            hub = self.network.hub
            if not wait_until(
                lambda: not gone.search(ip("-oneline", "link", inside=hub, check=False)), 30
            ):
                ip("link", "delete", self._port, inside=hub, check=False)

    def _filter(self, rules: str, *, check: bool = True) -> None:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", "nft", "-f", "-"],
            input=rules,
            check=False,
            capture_output=True,
            text=True,
        )
        if check and done.returncode != 0:
            raise StartError(f"{self.name}: nft: {done.stderr}")
