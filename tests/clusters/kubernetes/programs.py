"""Kubernetes' programs: built once per user and recipe from Debian's source, then cached."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.roots import Recipe, cache, root

_BUILD = Path(__file__).with_name("build.sh")
COMPILER = Recipe(
    "kubernetes-build",
    "bookworm",
    ("findutils", "git", "golang-go", "make", "rsync", "which"),
    variant="apt",
)


def place() -> Path:
    """Where kube-apiserver, kubelet, kubectl and the others are, or will be."""
    recipe = hashlib.sha256(_BUILD.read_bytes() + COMPILER.key.encode()).hexdigest()[:16]
    return cache() / f"kubernetes-{recipe}"


def programs() -> Path:
    """The directory with the programs, which root builds if they are not there.

    Building takes six minutes on 2 cores, once; the root file system of the compiler is then
    removed by whoever wants the space back: nothing else needs it.
    """
    directory = place()
    if directory.exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (cache() / "kubernetes.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process builds Kubernetes: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _clean(directory)
            _build(directory)
    return directory


def _clean(directory: Path) -> None:
    """Remove what builds that were killed have left: whoever has the lock is the only one."""
    for left in directory.parent.glob(f"{directory.name}.*"):
        if left.is_dir() and not wait_until(partial(_removed, left), 60):
            raise StartError(f"{left}, which a build has left, cannot be removed")


def _removed(directory: Path) -> bool:
    # Processes that are being killed may still write to it.
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _build(directory: Path) -> None:
    compiler = root(COMPILER)
    log = directory.with_suffix(".log")
    _say(f"building Kubernetes, once: about 6 minutes on 2 cores; its log is {log}")
    start = time.monotonic()
    # In a process namespace of its own, so that all of a build ends with its starter.
    namespace = ("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child=KILL")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*namespace, "--mount-proc", _BUILD, compiler, directory],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                last = log.read_text("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
                _say(f"building Kubernetes, {time.monotonic() - start:.0f} s: {last[:100]}")
        finally:
            process.kill()
            process.wait()
            _clean(directory)
    if process.returncode != 0:
        lines = log.read_text("utf-8", "replace").splitlines()[-40:]
        raise StartError(f"{_BUILD.name} ended with {process.returncode}:\n" + "\n".join(lines))
    _say(f"built Kubernetes in {time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
