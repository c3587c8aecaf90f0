"""Containers through Apptainer (or Singularity), on the same unpacked root as the sandbox.

The program is called directly: ``spython`` adds nothing to one ``exec`` that is waited for
together with others. Everything is passed by variables and ``--mount`` (which can quote,
unlike ``--bind``); nothing is inherited.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from clustrix_containers.containers.sandbox import namespaces
from clustrix_containers.remote import shell
from clustrix_containers.worker import contract

from .container import Container, ContainerSpec, Mount, ProcessContainer

PROGRAMS = ("apptainer", "singularity")


def program() -> str | None:
    """The program's path, or ``None``."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def unusable() -> str | None:
    """Why Apptainer cannot be used here; ``None`` if it can."""
    path = program()
    if path is None:
        return "neither apptainer nor singularity is on PATH"
    tried = shell.run([path, "--version"], timeout=30)
    return None if tried.code == 0 else f"{path} --version: {tried.complaint}"


def mount_option(mount: Mount) -> str:
    """``--mount``'s value: comma-separated, quoted as CSV."""
    fields = ["type=bind", f"source={mount.source}", f"destination={mount.target}"]
    if not mount.writable:
        fields.append("ro")
    return ",".join(
        '"' + field.replace('"', '""') + '"' if any(c in field for c in ',"\n') else field
        for field in fields
    )


@lru_cache
def evaluates_variables(path: str) -> bool:
    """Whether this program evaluates ``$…`` and backquotes in variables without ``--no-eval``.

    Apptainer since 1.1 and SingularityCE since 3.10 do; older ones do not know the option.
    """
    return b"--no-eval" in shell.run([path, "exec", "--help"], timeout=30).stdout


def command(path: str, spec: ContainerSpec, *, no_eval: bool, as_root: bool) -> list[str]:
    """The command line of a container; its variables are :func:`variables`.

    ``no_eval``: see :func:`evaluates_variables`. ``as_root``: root starts it, and it is to run
    as the user of ``spec``; an ordinary user's containers run as that user.
    """
    out = [path, "--silent", "exec", "--containall", "--cleanenv", "--no-home", "--no-privs"]
    if no_eval:
        out.append("--no-eval")
    out += ["--workdir", spec.scratch, "--pwd", spec.workdir]
    if as_root:
        out += ["--security", f"uid:{spec.uid}", "--security", f"gid:{spec.gid}"]
    if spec.gpus:
        out.append("--nv")
    for mount in spec.mounts:
        out += ["--mount", mount_option(mount)]
    return [*out, spec.root, *spec.argv]


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of the ``apptainer`` process that set these in its container."""
    # Apptainer lets no variable set HOME, so the worker does.
    env = {**env, contract.ENV_HOME: env["HOME"]} if "HOME" in env else env
    return {
        f"{prefix}_{name}": value
        for name, value in env.items()
        for prefix in ("APPTAINERENV", "SINGULARITYENV")
    }


class Apptainer:
    """Runs containers with the ``apptainer`` program."""

    enforces_limits = False

    def start(self, spec: ContainerSpec, output: int, before_exec: Callable[[], None]) -> Container:
        path = program()
        assert path is not None
        Path(spec.scratch).mkdir(parents=True, exist_ok=True)
        words = command(path, spec, no_eval=evaluates_variables(path), as_root=os.geteuid() == 0)
        own = {name: os.environ[name] for name in ("PATH", "USER", "HOME") if name in os.environ}
        env = own | variables(spec.env)
        return _ApptainerContainer(
            shell.fork(lambda: _run(words, env, output, before_exec)), spec.scratch
        )


def _run(
    words: list[str], env: dict[str, str], output: int, before_exec: Callable[[], None]
) -> NoReturn:
    """Be the process that kills the container when the supervisor is killed.

    Apptainer itself does not, and since it changes its credentials, the kernel forgets its
    parent-death signal.
    """
    namespaces.reset_signals()
    signal.signal(signal.SIGTERM, _kill_descendants)
    namespaces.adopt_orphans()
    namespaces.die_with_parent(signal.SIGTERM)
    try:
        process = shell.spawn(words, env=env, output=output, before_exec=before_exec)
    except Exception as error:
        os.write(output, f"clustrix: {error}\n".encode())
        os._exit(126)
    code = process.wait()
    os._exit(code if code >= 0 else 128 - code)


def _kill_descendants(_number: int, _frame: FrameType | None) -> None:
    """SIGKILL to the descendants of this process until none is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in shell.tree(os.getpid())[1:]:
            shell.send(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        time.sleep(0.01)
    os._exit(128 + signal.SIGKILL)


class _ApptainerContainer(ProcessContainer):
    def __init__(self, pid: int, scratch: str) -> None:
        super().__init__(pid)
        self._scratch = scratch

    def kill(self) -> None:
        # The shim's first child is not the first process of a namespace: the shim kills it all.
        if self.ended() is None:
            shell.send(self._shim, signal.SIGTERM)

    def close(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
