"""Kubernetes' programs: built once per user and recipe from Debian's source, then cached."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.clusters.daemon import StartError
from tests.clusters.machines.roots import Recipe, cache, root

_BUILD = Path(__file__).with_name("build.sh")
COMPILER = Recipe(
    "kubernetes-build",
    "bookworm",
    ("findutils", "git", "golang-go", "make", "rsync", "which"),
    variant="apt",
)


def programs() -> Path:
    """The directory with kube-apiserver, kubelet, kubectl and the others, made if it is not there.

    Building takes six minutes on 2 cores, once; the root file system of the compiler is then
    removed by whoever wants the space back: nothing else needs it.
    """
    recipe = hashlib.sha256(_BUILD.read_bytes() + COMPILER.key.encode()).hexdigest()[:16]
    directory = cache() / f"kubernetes-{recipe}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (cache() / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _build(directory)
    return directory


def _build(directory: Path) -> None:
    if os.geteuid() != 0:
        raise StartError("only root can build Kubernetes here: leave it out (--exclude kubernetes)")
    compiler = root(COMPILER)
    log = directory.with_suffix(".log")
    _say(f"building Kubernetes, once: about 6 minutes on 2 cores; its log is {log}")
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [_BUILD, compiler, directory],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            last = log.read_text("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
            _say(f"building Kubernetes, {time.monotonic() - start:.0f} s: {last[:100]}")
    if process.returncode != 0:
        lines = log.read_text("utf-8", "replace").splitlines()[-40:]
        raise StartError(f"{_BUILD.name} ended with {process.returncode}:\n" + "\n".join(lines))
    _say(f"built Kubernetes in {time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
