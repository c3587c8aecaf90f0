"""The built-in sandbox: bubblewrap for an ordinary user who has it, else system calls.

As root it is always system calls, because bubblewrap cannot change to another real user.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from clustrix_containers.clusters.local.plan import Mount, Plan
from clustrix_containers.remote import shell

from .process import Container, ProcessContainer

CAP_SYS_ADMIN = 21
PACKAGE = str(Path(shell.__file__).resolve().parents[2])


def is_full_root() -> bool:
    """Whether this process may make mounts without a user namespace."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


@lru_cache
def means(wanted: str | None = None) -> tuple[str | None, str]:
    """``bubblewrap``, ``namespaces`` or ``None``, and why; ``wanted`` restricts it to one."""
    reasons = []
    if wanted != "namespaces":
        why = _try_bubblewrap()
        if why is None:
            return "bubblewrap", "bubblewrap works"
        reasons.append(f"bubblewrap: {why}")
    if wanted != "bubblewrap":
        why = _try_namespaces()
        if why is None:
            return "namespaces", "namespaces, as root" if is_full_root() else "user namespaces work"
        reasons.append(f"user namespaces cannot be made: {why}{_known_reason()}")
    return None, "; ".join(reasons)


def _try_bubblewrap() -> str | None:
    if is_full_root():
        return "as root it cannot change to another real user"
    program = shell.find("bwrap")
    if program is None:
        return "it is not installed"
    command = [*bubblewrap_command(program, "/", (), 4096, "/", os.getuid(), os.getgid()), "true"]
    tried = shell.run(command, timeout=20)
    return None if tried.code == 0 else tried.complaint


def _try_namespaces() -> str | None:
    # In a process of its own: it forks, which a client with threads must not.
    code = (
        "import sys; sys.path += sys.argv[2:];"
        "from clustrix_containers.containers.namespaces import probe;"
        "print(probe(sys.argv[1] == 'private') or '', end='')"
    )
    kind = "root" if is_full_root() else "private"
    tried = shell.run(shell.python(code, kind, PACKAGE), timeout=20)
    return (tried.text or None) if tried.code == 0 else tried.complaint


def _known_reason() -> str:
    """The setting that forbids user namespaces, if it is one that is known."""
    for path, forbids in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        try:
            value = Path("/proc/sys", path).read_text().strip()
        except OSError:
            continue
        if value == forbids:
            return f" (sysctl {path.replace('/', '.')} is {value})"
    return ""


def bubblewrap_command(
    program: str,
    root: str,
    mounts: tuple[Mount, ...],
    shm: int,
    workdir: str,
    uid: int,
    gid: int,
) -> list[str]:
    """The command line up to the container's own command. The environment goes as it is."""
    out = [program, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    out += ["--die-with-parent", "--as-pid-1", "--hostname", "clustrix", "--cap-drop", "ALL"]
    out += ["--uid", str(uid), "--gid", str(gid), "--ro-bind", root, "/"]
    out += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(shm)]
    out += ["--tmpfs", "/dev/shm"]  # noqa: S108
    for name in ("/tmp", "/var/tmp"):  # noqa: S108
        if os.path.isdir(root + name) and not os.path.islink(root + name):
            out += ["--perms", "1777", "--tmpfs", name]
    for mount in mounts:
        out += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    return [*out, "--remount-ro", "/dev", "--chdir", workdir, "--"]


class Sandbox:
    """Runs containers as namespaces of this machine."""

    limits = False

    def __init__(self, how: str) -> None:
        self._bubblewrap = shell.find("bwrap") if how == "bubblewrap" else None
        self._private = not is_full_root()

    def start(
        self, plan: Plan, element: int, env: dict[str, str], output: int, before: Callable[[], None]
    ) -> Container:
        del element
        if self._bubblewrap:
            command = bubblewrap_command(
                self._bubblewrap, plan.root, plan.mounts, plan.shm, plan.workdir, plan.uid, plan.gid
            )
            process = shell.spawn(
                [*command, *plan.argv], env=env, output=output, before_exec=before
            )
            # Its end is waited for by number, together with all others.
            process.returncode = 0
            return ProcessContainer(process.pid)
        from . import namespaces

        cell = namespaces.Cell(
            root=plan.root,
            mounts=plan.mounts,
            argv=plan.argv,
            env=env,
            workdir=plan.workdir,
            uid=plan.uid,
            gid=plan.gid,
            shm=plan.shm,
            private=self._private,
        )
        pid = shell.fork(lambda: namespaces.enter(cell, output, before))
        return ProcessContainer(pid)
