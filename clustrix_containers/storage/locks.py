"""A lock between processes that also works on NFS, and between the threads of one process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# POSIX locks belong to the process, so its own threads need one more.
_threads: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_guard = threading.Lock()


def _renew_after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` (made if it is not there) exclusively; freed too when the process dies.

    ``fcntl.lockf`` and not ``flock``: NFS clients pass it on to the server.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with _guard:
        mine = _threads[str(path.resolve())]
    with mine:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            yield
        finally:
            # Closing any descriptor of the file frees the process's lock.
            os.close(handle)
