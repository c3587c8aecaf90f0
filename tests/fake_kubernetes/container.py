"""A container that really runs: namespaces, and an overlay over the image's root.

Made with ``unshare``, ``mount`` and ``nsenter``. As root a container has the user that it asks
for; for an ordinary user it runs in a user namespace, where it seems to be root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

KEEPER = Path(__file__).with_name("keeper.sh")
SCRIPT = Path(__file__).with_name("container.sh")


@dataclass(frozen=True)
class Mount:
    source: Path
    target: str
    writable: bool


@dataclass(frozen=True)
class Plan:
    """``scratch``: a directory of its own. ``address``: in a network of its own."""

    scratch: Path
    root: Path
    host_name: str
    address: str
    command: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    uid: int
    gid: int
    writable: bool
    mounts: Sequence[Mount]


class Running(Protocol):
    """A container that a kubelet has started."""

    @property
    def running(self) -> bool: ...
    async def wait(self) -> int: ...
    def signal(self, number: int) -> None: ...
    def kill(self) -> None: ...
    async def execute(self, command: Sequence[str]) -> asyncio.subprocess.Process: ...
    async def listens(self, port: int) -> bool: ...


class Container:
    def __init__(self, plan: Plan, process: asyncio.subprocess.Process) -> None:
        self._plan = plan
        self._process = process

    @classmethod
    async def start(cls, plan: Plan) -> Container:
        """Start it; its command runs (or has ended) when this returns."""
        plan.scratch.mkdir(parents=True)
        mounts = [
            part
            for it in plan.mounts
            for part in (str(it.source), it.target, "rw" if it.writable else "ro")
        ]
        environment = [f"{name}={value}" for name, value in plan.environment.items()]
        root = os.geteuid() == 0
        identity = (str(plan.uid), str(plan.gid)) if root else ("", "")
        starting = asyncio.create_subprocess_exec(
            # The keeper gets a signal when the server's thread ends.
            *("setpriv", "--pdeathsig", "TERM", "unshare", "--pid", "--mount", "--ipc", "--uts"),
            *("--net", *(() if root else ("--user", "--map-root-user"))),
            *("/bin/sh", KEEPER, "/bin/sh", SCRIPT),
            *(plan.scratch, plan.root, plan.host_name, plan.address),
            *("yes" if plan.writable else "no", *identity, plan.directory, *mounts, "--"),
            *(str(len(environment)), *environment, *plan.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        # asyncio would kill the keeper of one that is cancelled while it starts; we end both.
        creation = asyncio.ensure_future(starting)
        container: Container | None = None
        try:
            container = cls(plan, await asyncio.shield(creation))
            while container.running and not container._entered():
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            container = container or cls(plan, await creation)
            container.kill()
            await container.wait()
            raise
        return container

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit code, 128 + n for signal n."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        if self.running and (pid := self._pid):
            _send(pid, number)

    def kill(self) -> None:
        """At once, whatever state it is in."""
        if self.running:
            # Not by the process object: that looks before it signals, and takes the exit code of
            # what has ended from those who wait for it.
            pid = self._pid
            _send(pid or self._process.pid, signal.SIGKILL if pid else signal.SIGTERM)

    async def execute(self, command: Sequence[str]) -> asyncio.subprocess.Process:
        """Another process in the container, with pipes for its three streams."""
        user = ("--user", "--preserve-credentials") if os.geteuid() else ()
        identity = () if user else (f"--setuid={self._plan.uid}", f"--setgid={self._plan.gid}")
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *("/usr/bin/nsenter", f"--target={self._pid}", "--mount", "--pid", "--uts", "--ipc"),
            *("--net", "--root", "--wd", *user, *identity, "--", *command),
            env=dict(self._plan.environment),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    async def listens(self, port: int) -> bool:
        """Whether a TCP connection to the container's address is accepted."""
        user = ("--user", "--preserve-credentials") if os.geteuid() else ()
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--target={self._pid}", "--net", *user),
            *("bash", "-c", 'exec 3<> "/dev/tcp/$0/$1"', self._plan.address, str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0

    @property
    def _pid(self) -> int:
        """Of its first process, as the host sees it; 0 if it has ended."""
        outer = self._process.pid
        try:
            return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
        except (OSError, IndexError):
            return 0

    def _entered(self) -> bool:
        """Whether the command itself runs, and no longer what prepares its root."""
        try:
            own = Path(f"/proc/{self._pid}/root").stat()
            name = Path(f"/proc/{self._pid}/comm").read_text().strip()
        except OSError:
            return False
        host = Path("/").stat()
        return (own.st_dev, own.st_ino) != (host.st_dev, host.st_ino) and name != "unshare"


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
