"""Containers that are processes of this machine: the sandbox's and Apptainer's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Protocol

from clustrix_containers.clusters.local.plan import Plan
from clustrix_containers.remote import shell


class Container(Protocol):
    """One running container, for the supervisor."""

    pid: int | None
    """The process whose tree it is, where it is one of this machine that we may look at."""

    def ended(self) -> int | None:
        """The exit code (128 + n for signal n), or ``None`` while it runs."""
        ...

    def terminate(self) -> None:
        """SIGTERM to its main process."""
        ...

    def kill(self) -> None:
        """SIGKILL to all of it."""
        ...

    def out_of_memory(self) -> bool:
        """Whether its engine says that it was ended for want of memory."""
        ...

    def close(self) -> None:
        """Give back what it holds, after it has ended."""
        ...


class Runtime(Protocol):
    """What starts containers: the sandbox, Apptainer, Docker."""

    limits: bool
    """Whether it enforces memory and processor limits itself."""

    def start(
        self, plan: Plan, element: int, env: dict[str, str], output: int, before: Callable[[], None]
    ) -> Container: ...


class ProcessContainer:
    """A child of the supervisor, the keeper, whose own child is the container's first process."""

    def __init__(self, pid: int) -> None:
        self.pid: int | None = pid
        self._keeper = pid
        self._code: int | None = None

    def ended(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._keeper, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
        return self._code

    def terminate(self) -> None:
        if self._code is None:
            for pid in shell.children(self._keeper) or [self._keeper]:
                shell.send(pid, signal.SIGTERM)

    def kill(self) -> None:
        if self._code is None:
            # The first process of a pid namespace takes all of it along; the keeper ends by
            # itself, once nothing is left.
            for pid in shell.children(self._keeper) or [self._keeper]:
                shell.send(pid, signal.SIGKILL)

    def out_of_memory(self) -> bool:
        return False

    def close(self) -> None:
        pass
