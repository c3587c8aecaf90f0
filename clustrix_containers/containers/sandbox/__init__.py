"""The built-in sandbox: bubblewrap for an ordinary user who has it, else system calls.

As root it is always system calls, because bubblewrap cannot change to another real user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from clustrix_containers.containers.container import (
    HOSTNAME,
    Container,
    ContainerSpec,
    ProcessContainer,
)
from clustrix_containers.remote import shell

CAP_SYS_ADMIN = 21
PACKAGE = str(Path(shell.__file__).resolve().parents[2])


def is_full_root() -> bool:
    """Whether this process may mount without a user namespace."""
    effective = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    mounts = effective is not None and bool(int(effective[1], 16) >> CAP_SYS_ADMIN & 1)
    return os.geteuid() == 0 and mounts


@lru_cache
def find_method(wanted: str | None = None) -> tuple[str | None, str]:
    """``bubblewrap``, ``namespaces`` or ``None``, and why; ``wanted`` allows only that one."""
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
        reasons.append(f"user namespaces cannot be created: {why}{_sysctl_reason()}")
    return None, "; ".join(reasons)


def _try_bubblewrap() -> str | None:
    if is_full_root():
        return "as root it cannot change to another real user"
    program = shutil.which("bwrap")
    if program is None:
        return "it is not installed"
    spec = ContainerSpec("/", ("true",), uid=os.getuid(), gid=os.getgid(), shm=4096)
    tried = shell.run(bubblewrap_command(program, spec), timeout=20)
    return None if tried.code == 0 else tried.complaint


def _try_namespaces() -> str | None:
    # In a separate process: it forks, which a client with threads must not.
    code = (
        "import sys; sys.path += sys.argv[2:];"
        "from clustrix_containers.containers.sandbox.namespaces import probe;"
        "print(probe(sys.argv[1] == 'user') or '', end='')"
    )
    kind = "root" if is_full_root() else "user"
    tried = shell.run(shell.python(code, kind, PACKAGE), timeout=20)
    return (tried.text or None) if tried.code == 0 else tried.complaint


def _sysctl_reason() -> str:
    """The setting that forbids user namespaces, if it is a known one."""
    for path, forbids in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", path).read_text().strip() == forbids:
                return f" (sysctl {path.replace('/', '.')} is {forbids})"
    return ""


def bubblewrap_command(program: str, spec: ContainerSpec) -> list[str]:
    """The command line. The environment is that of the ``bwrap`` process itself."""
    root = spec.root
    out = [program, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    out += ["--die-with-parent", "--as-pid-1", "--hostname", HOSTNAME, "--cap-drop", "ALL"]
    out += ["--uid", str(spec.uid), "--gid", str(spec.gid), "--ro-bind", root, "/"]
    out += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(spec.shm)]
    out += ["--tmpfs", "/dev/shm"]  # noqa: S108
    for name in ("/tmp", "/var/tmp"):  # noqa: S108
        if os.path.isdir(root + name) and not os.path.islink(root + name):
            out += ["--perms", "1777", "--tmpfs", name]
    for mount in spec.mounts:
        out += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    return [*out, "--remount-ro", "/dev", "--chdir", spec.workdir, "--", *spec.argv]


class Sandbox:
    """Runs containers as namespaces of this machine."""

    enforces_limits = False

    def __init__(self, method: str) -> None:
        self._bubblewrap = shutil.which("bwrap") if method == "bubblewrap" else None
        self._user_namespace = not is_full_root()

    def start(self, spec: ContainerSpec, output: int, before_exec: Callable[[], None]) -> Container:
        if self._bubblewrap:
            command = bubblewrap_command(self._bubblewrap, spec)
            process = shell.spawn(command, env=spec.env, output=output, before_exec=before_exec)
            # ProcessContainer waits for it: keep Popen from doing so.
            process.returncode = 0
            return ProcessContainer(process.pid)
        from . import namespaces

        pid = shell.fork(lambda: namespaces.enter(spec, self._user_namespace, output, before_exec))
        return ProcessContainer(pid)
