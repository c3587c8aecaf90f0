"""Containers through Apptainer (or Singularity), on the same unpacked root as the sandbox.

Called as a program: ``spython`` adds nothing to one ``exec`` whose end is waited for
together with others'. Everything is handed over by variables and ``--mount`` (which quotes,
as ``--bind`` does not), nothing is inherited.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from clustrix_containers.clusters.local.plan import Mount, Plan
from clustrix_containers.remote import shell
from clustrix_containers.worker import contract

from . import namespaces
from .process import Container, ProcessContainer

PROGRAMS = ("apptainer", "singularity")


def program() -> str | None:
    """The program's path, or ``None``."""
    return next((path for name in PROGRAMS if (path := shell.find(name))), None)


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
def _may_evaluate(path: str) -> bool:
    """Whether it would evaluate ``$…`` and backquotes in variables, unless told not to.

    So does Apptainer since 1.1, SingularityCE since 3.10; older ones do not know the option.
    """
    return b"--no-eval" in shell.run([path, "exec", "--help"], timeout=30).stdout


def command(path: str, plan: Plan, work: Path) -> list[str]:
    """The command line; the environment goes by ``APPTAINERENV_`` variables."""
    out = [path, "--silent", "exec", "--containall", "--cleanenv", "--no-home", "--no-privs"]
    if _may_evaluate(path):
        out.append("--no-eval")
    out += ["--workdir", str(work), "--pwd", plan.workdir]
    if os.geteuid() == 0:
        out += ["--security", f"uid:{plan.uid}", "--security", f"gid:{plan.gid}"]
    if plan.gpus:
        out.append("--nv")
    for mount in plan.mounts:
        out += ["--mount", mount_option(mount)]
    return [*out, plan.root, *plan.argv]


class Apptainer:
    """Runs containers with the ``apptainer`` program."""

    limits = False

    def start(
        self, plan: Plan, element: int, env: dict[str, str], output: int, before: Callable[[], None]
    ) -> Container:
        path = program()
        assert path is not None
        work = plan.control / "work" / str(element)
        work.mkdir(parents=True, exist_ok=True)
        passed = {
            name: value for name in ("PATH", "USER", "HOME") if (value := os.environ.get(name))
        }
        # Apptainer does not let a variable set HOME, so the worker does.
        for name, value in {**env, contract.ENV_HOME: env["HOME"]}.items():
            passed[f"APPTAINERENV_{name}"] = passed[f"SINGULARITYENV_{name}"] = value

        words = command(path, plan, work)
        pid = shell.fork(lambda: keep(words, passed, output, before))
        return _ApptainerContainer(pid, work)


def keep(
    words: list[str], env: dict[str, str], output: int, before: Callable[[], None]
) -> NoReturn:
    """Be the process that ends the container when the supervisor is killed.

    Nothing of Apptainer's own does that, and it changes its credentials, at which the kernel
    forgets that it was to be ended with its parent.
    """
    namespaces.forget_signals()
    signal.signal(signal.SIGTERM, _end_all)
    namespaces.adopt_orphans()
    namespaces.die_with_parent(signal.SIGTERM)
    try:
        process = shell.spawn(words, env=env, output=output, before_exec=before)
    except Exception as error:
        os.write(output, f"clustrix: {error}\n".encode())
        os._exit(126)
    code = process.wait()
    os._exit(code if code >= 0 else 128 - code)


def _end_all(_number: int, _frame: FrameType | None) -> None:
    """SIGKILL to all below this process, until there is nothing."""
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
    def __init__(self, pid: int, work: Path) -> None:
        super().__init__(pid)
        self._work = work

    def kill(self) -> None:
        # The keeper knows the way; its first child is not the first process of a namespace.
        if self.ended() is None:
            shell.send(self._keeper, signal.SIGTERM)

    def close(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
