"""Containers that are none: the image's worker, forked from one process that has imported it.

For thousands of elements: each runs the real worker and the image's code, in a process of its
own, with its pod's volumes; but with this machine's interpreter and root file system.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clustrix_containers.worker import contract
from tests.fake_kubernetes.container import Plan

FORKER = Path(__file__).with_name("forker.py")


class Forks:
    """Starts them. One process per image, in a pid namespace of its own, that ends with ours."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._forkers: dict[tuple[Path, Path], _Forker] = {}
        self._lock = asyncio.Lock()

    async def start(self, plan: Plan) -> Forked:
        image = _source(plan, contract.CODE), _source(plan, contract.CALL)
        async with self._lock:
            if image not in self._forkers:
                root = self._directory / str(len(self._forkers))
                self._forkers[image] = await _Forker.start(root, plan)
        return self._forkers[image].fork(plan)

    async def stop(self) -> None:
        for forker in self._forkers.values():
            await forker.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


class Forked:
    """One element's worker."""

    def __init__(self, forker: _Forker, number: int) -> None:
        self._forker, self._number = forker, number
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        return not self.code.done()

    async def wait(self) -> int:
        return await asyncio.shield(self.code)

    def signal(self, number: int) -> None:
        if self.running:
            self._forker.order({"signal": number, "to": self._number})

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def execute(self, command: Sequence[str]) -> asyncio.subprocess.Process:
        raise NotImplementedError("nothing can be run beside a forked worker")

    async def listens(self, port: int) -> bool:
        return False


class _Forker:
    def __init__(self, root: Path, process: asyncio.subprocess.Process) -> None:
        self._root, self._process = root, process
        self._numbers = itertools.count()
        self._forked: dict[int, Forked] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, root: Path, plan: Plan) -> _Forker:
        """``root`` becomes the image's part of ours, as the worker needs it."""
        root.mkdir(parents=True)
        own = plan.root / contract.ROOT[1:]
        for name in ("worker.py", "deliver.py", "lib"):
            (root / name).symlink_to(own / name)
        for target in (contract.CODE, contract.CALL):
            (root / Path(target).name).symlink_to(_source(plan, target))
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        process = await asyncio.create_subprocess_exec(
            *("unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-I", FORKER, root / "worker.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(root, process)

    def fork(self, plan: Plan) -> Forked:
        plan.scratch.mkdir(parents=True)
        deliver, run = plan.scratch / "deliver", _source(plan, contract.RUN)
        # The message's path is the container's, and here is no container.
        message = str(_source(plan, "/dev/termination-log"))
        how = {**json.loads((run / "deliver").read_bytes()), "message": message}
        deliver.write_text(json.dumps(how))
        environment = {
            **plan.environment,
            contract.ENV_ROOT: str(self._root),
            contract.ENV_RESULTS: str(_source(plan, contract.RESULTS)),
            contract.ENV_KEY: str(run / "key"),
            contract.ENV_DELIVER: str(deliver),
        }
        number = next(self._numbers)
        forked = self._forked[number] = Forked(self, number)
        self.order({"start": number, "environment": environment})
        return forked

    def order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            end = json.loads(line)
            self._forked.pop(end["ended"]).code.set_result(end["code"])
        for left in self._forked.values():
            left.code.set_result(137)


def _source(plan: Plan, target: str) -> Path:
    return next(Path(it.source) for it in plan.mounts if it.target == target)
