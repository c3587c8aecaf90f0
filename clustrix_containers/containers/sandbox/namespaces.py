"""A container by system calls alone: namespaces, mounts, no privileges, then the command.

It does what bubblewrap does, and what bubblewrap cannot do: for root the command runs as
another real user, which cannot read root's files. An ordinary user keeps their own
id, in a user namespace. See namespaces(7), mount_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from clustrix_containers.containers.container import HOSTNAME, ContainerSpec

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MS_NOATIME, MS_NODIRATIME, MS_RELATIME, ST_RELATIME = 1024, 2048, 1 << 21, 4096
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))

_libc = ctypes.CDLL(None, use_errno=True)


def enter(
    spec: ContainerSpec, user_namespace: bool, output: int, before_exec: Callable[[], None]
) -> NoReturn:
    """Become the shim of a new container; for a process that was forked for it.

    ``user_namespace``: the caller is not fully root. The shim waits and ends with the command's
    exit code (128 + n for signal n, 126 if the container cannot be made). Shim and container
    die with the caller.
    """
    try:
        reset_signals()
        os.setsid()
        die_with_parent()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        before_exec()
        with _step("create namespaces"):
            _unshare(user_namespace, spec.uid, spec.gid)
        child = os.fork()
        if child == 0:
            die_with_parent()
            _become(spec, user_namespace)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    except OSError as error:
        os.write(2, f"clustrix: the sandbox cannot be created: {error}\n".encode())
        os._exit(126)


def probe(user_namespace: bool) -> str | None:
    """Why namespaces cannot be created here; ``None`` if they can.

    For a process that was started for it: it loses its own namespaces, and forks.
    """
    try:
        _unshare(user_namespace, os.getuid(), os.getgid())
        child = os.fork()
        if child == 0:
            try:
                _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            return "a new /proc cannot be mounted (inside another container?)"
    except OSError as error:
        return error.strerror
    return None


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> int:
    return int(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, also after ``exec``."""
    parent = os.getppid()
    _check(_prctl(PR_SET_PDEATHSIG, number), "prctl")
    # In a new pid namespace the parent is 0, outside; it looks the same as a dead one there.
    if os.getppid() != parent:
        os._exit(126)


def reset_signals() -> None:
    """Restore the default handlers after a fork."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that they can be found."""
    _check(_prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl")


def _unshare(user_namespace: bool, uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    _check(_libc.unshare(flags | (CLONE_NEWUSER if user_namespace else 0)), "unshare")
    if user_namespace:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {outer_gid} 1")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mount {target}")


def _bind(source: str, target: str, *, writable: bool, devices: bool = False) -> None:
    _mount(source, target, None, MS_BIND)
    flags = MS_NOSUID | (0 if devices else MS_NODEV) | (0 if writable else MS_RDONLY)
    _mount(None, target, None, MS_REMOUNT | MS_BIND | flags | _locked_flags(target))


def _locked_flags(path: str) -> int:
    """Flags of the mount at ``path`` that a user namespace may not take away."""
    flags = os.statvfs(path).f_flag
    same = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
    return flags & same | (MS_RELATIME if flags & ST_RELATIME else 0)


def _become(spec: ContainerSpec, user_namespace: bool) -> NoReturn:
    """In the new PID namespace, as its first process."""
    try:
        _build_root(spec)
        with _step("change the root directory"):
            os.chdir(spec.root)
            _check(_libc.pivot_root(b".", b"."), "pivot_root")
            _check(_libc.umount2(b".", MNT_DETACH), "umount")
            os.chdir("/")
        _check(_libc.sethostname(HOSTNAME.encode(), len(HOSTNAME)), "sethostname")
        _drop_privileges(spec, user_namespace)
        with _step(f"working directory {spec.workdir}"):
            os.chdir(spec.workdir)
        _execute(spec.argv, spec.env)
    except OSError as error:
        os.write(2, f"clustrix: the sandbox cannot be created: {error.strerror}\n".encode())
    finally:
        os._exit(126)


def _build_root(spec: ContainerSpec) -> None:
    root = spec.root
    _bind(root, root, writable=True)
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _build_dev(f"{root}/dev", spec.shm)
    for name in ("/tmp", "/var/tmp"):  # noqa: S108
        if os.path.isdir(root + name) and not os.path.islink(root + name):
            _mount("tmpfs", root + name, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for mount in spec.mounts:
        with _step(f"bind {mount.source}"):
            _bind(mount.source, root + mount.target, writable=mount.writable)
    _mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | _locked_flags(root))


def _build_dev(dev: str, shm: int) -> None:
    _mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=65536")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
            _bind(f"/dev/{name}", f"{dev}/{name}", writable=True, devices=True)
    for name, target in LINKS:
        os.symlink(target, f"{dev}/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"{dev}/{name}", 0o755)
    _mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={shm}")
    with contextlib.suppress(OSError):
        options = "newinstance,ptmxmode=0666,mode=620"
        _mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
        os.symlink("pts/ptmx", f"{dev}/ptmx")
    _mount(None, dev, None, MS_REMOUNT | MS_RDONLY | MS_NOSUID, "mode=755,size=65536")


def _drop_privileges(spec: ContainerSpec, user_namespace: bool) -> None:
    for capability in range(64):
        if _prctl(PR_CAPBSET_DROP, capability) != 0:
            break
    if not user_namespace:
        os.setgroups([])
        os.setresgid(spec.gid, spec.gid, spec.gid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    # Changing the user has cleared it.
    _check(_prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")


def _execute(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with _step(f"start {argv[0]}"):
        os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606
