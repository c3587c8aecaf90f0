"""What a container is, and what starts and ends one: the same for every runtime."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from clustrix_containers.remote import shell

HOSTNAME = "clustrix"


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host inside the container."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container is. It sees nothing else of the host, and inherits no variables.

    ``root``: the unpacked root file system, or an image in the runtime's own form (Docker: the
    image's id). ``cpus`` in cores, ``memory`` and ``shm`` (the size of ``/dev/shm``) in bytes.
    ``network``: Docker's network mode; the others share the host's network. ``scratch``: a
    directory of the host for this container alone, for a runtime that needs one.
    ``labels``: for an engine that outlives its client.
    """

    root: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    workdir: str = "/"
    uid: int = 65534
    gid: int = 65534
    cpus: float = 1.0
    memory: int | None = None
    shm: int = 1 << 30
    gpus: int = 0
    network: str | None = None
    scratch: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ContainerSpec:
        """The inverse of ``dataclasses.asdict``, also after JSON."""
        mounts = tuple(Mount(**mount) for mount in value["mounts"])
        return cls(**{**value, "argv": tuple(value["argv"]), "mounts": mounts})


class Container(Protocol):
    """One running container."""

    pid: int | None
    """The process whose tree it is, where that is a process of ours."""

    def ended(self) -> int | None:
        """The exit code (128 + n for signal n), or ``None`` while it runs."""

    def terminate(self) -> None:
        """SIGTERM to its main process."""

    def kill(self) -> None:
        """SIGKILL to all of it."""

    def out_of_memory(self) -> bool:
        """Whether its engine reports that it was killed for its memory limit."""

    def close(self) -> None:
        """Release what it holds, after it has ended."""


class Runtime(Protocol):
    """What starts containers: the sandbox, Apptainer, Docker."""

    enforces_limits: bool
    """Whether it enforces memory and processor limits itself."""

    def start(self, spec: ContainerSpec, output: int, before_exec: Callable[[], None]) -> Container:
        """Start a container. ``output`` is the file descriptor for what it prints.

        ``before_exec`` runs in the new process, where there is one. Only for a program
        without threads.
        """


class ProcessContainer:
    """A container that is a child process, the shim, whose child is its first process."""

    def __init__(self, pid: int) -> None:
        self.pid: int | None = pid
        self._shim = pid
        self._code: int | None = None

    def ended(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._shim, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
        return self._code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        # The first process of a PID namespace takes all others with it; then the shim ends.
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._code is None:
            for pid in shell.children(self._shim) or [self._shim]:
                shell.send(pid, number)

    def out_of_memory(self) -> bool:
        return False

    def close(self) -> None:
        pass
