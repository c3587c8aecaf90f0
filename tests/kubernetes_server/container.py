"""A container that really runs: namespaces, an overlay over the image's root, and its log.

Made with ``unshare``, ``mount`` and ``nsenter``. As root a container has the user that it asks
for; for an ordinary user it runs in a user namespace, where it seems to be root.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """``address``: in a network of its own; empty: the host's network."""

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


@dataclass
class Log:
    """What a container wrote, as lines with the time at which each was complete."""

    lines: list[tuple[datetime.datetime, bytes]] = field(default_factory=list)
    ended: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, line: bytes) -> None:
        self.lines.append((datetime.datetime.now(datetime.timezone.utc), line))
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def grows(self) -> None:
        await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Running(Protocol):
    """What a kubelet does with a container that it has started."""

    log: Log

    @property
    def pid(self) -> int: ...
    @property
    def running(self) -> bool: ...
    async def wait(self) -> int: ...
    def signal(self, number: int) -> None: ...
    def kill(self) -> None: ...
    async def execute(self, command: Sequence[str], piped: bool) -> asyncio.subprocess.Process: ...
    async def listens(self, port: int) -> bool: ...


class Container:
    """One that has been started."""

    def __init__(self, plan: Plan, process: asyncio.subprocess.Process) -> None:
        self._plan = plan
        self._process = process
        self.log = Log()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, plan: Plan) -> Container:
        """Start it; its command runs (or has ended) when this returns."""
        plan.scratch.mkdir(parents=True, exist_ok=True)
        mounts = [
            part
            for it in plan.mounts
            for part in (str(it.source), it.target, "rw" if it.writable else "ro")
        ]
        environment = [f"{name}={value}" for name, value in plan.environment.items()]
        identity = (str(plan.uid), str(plan.gid)) if os.geteuid() == 0 else ("", "")
        starting = asyncio.create_subprocess_exec(
            # The keeper is told when the server's thread ends.
            *("setpriv", "--pdeathsig", "TERM", "unshare", "--pid", "--mount", "--ipc", "--uts"),
            *_namespaces(plan),
            *("/bin/sh", KEEPER, "/bin/sh", SCRIPT),
            *(plan.scratch, plan.root, plan.host_name, plan.address),
            *("yes" if plan.writable else "no", *identity, plan.directory, *mounts, "--"),
            *(str(len(environment)), *environment, *plan.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        # One that is told to end while it starts is ended by us: asyncio would kill the keeper.
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
    def pid(self) -> int:
        """Of its first process, as the host sees it; 0 if it has ended."""
        outer = self._process.pid
        try:
            return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
        except (OSError, IndexError):
            return 0

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit code, 128 + n for signal n, once it and its log have ended."""
        code = await self._process.wait()
        await self._reader
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        if self.running and (pid := self.pid):
            _send(pid, number)

    def kill(self) -> None:
        """At once, whatever state it is in."""
        if self.running:
            # Not by the process object: before it signals it looks, and what it finds ended it
            # takes the exit code of, from those who wait for it.
            pid = self.pid
            _send(pid or self._process.pid, signal.SIGKILL if pid else signal.SIGTERM)

    async def execute(self, command: Sequence[str], piped: bool) -> asyncio.subprocess.Process:
        """Another process in the container; with pipes for what it reads and writes."""
        user = ("--user", "--preserve-credentials") if os.geteuid() else ()
        identity = () if user else (f"--setuid={self._plan.uid}", f"--setgid={self._plan.gid}")
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *("/usr/bin/nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc"),
            *("--net", "--root", "--wd", *user, *identity, "--", *command),
            env=dict(self._plan.environment),
            stdin=pipe if piped else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )

    async def listens(self, port: int) -> bool:
        """Whether a TCP connection to the container's address is accepted."""
        address = self._plan.address
        network = (f"--target={self.pid}", "--net") if address else ()
        user = ("--user", "--preserve-credentials") if os.geteuid() and address else ()
        process = await asyncio.create_subprocess_exec(
            *(("nsenter", *network, *user) if network else ()),
            *("bash", "-c", 'exec 3<> "/dev/tcp/$0/$1"', address or "127.0.0.1", str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0

    def _entered(self) -> bool:
        """Whether the command itself runs, and no more what prepares its place."""
        try:
            own = Path(f"/proc/{self.pid}/root").stat()
            name = Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            return False
        host = Path("/").stat()
        return (own.st_dev, own.st_ino) != (host.st_dev, host.st_ino) and name != "unshare"

    async def _read(self) -> None:
        assert self._process.stdout
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.log.add(line + b"\n")
        if rest:
            self.log.add(rest)
        self.log.end()


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _namespaces(plan: Plan) -> Sequence[str]:
    network = ("--net",) if plan.address else ()
    return network if os.geteuid() == 0 else (*network, "--user", "--map-root-user")
