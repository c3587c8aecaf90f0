"""Locks between processes, and between the threads of one: a moment's mutex, and a sign of life.

Both are ``flock`` on a file of their own. It belongs to the open file and not to the process, so
two threads exclude each other too, and the kernel frees it when its holder dies. On NFS, Linux
turns it into a lock of the whole file at the server, which wants the file open for writing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_mutexes: set[int] = set()
"""Files of the mutexes that this process holds or waits for."""


def _leave_to_parent() -> None:
    # A forked child shares the parent's open files: it must neither free nor prolong a mutex.
    for file in _mutexes:
        os.close(file)
    _mutexes.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def locked(path: Path, *, mode: int = 0o666) -> Iterator[None]:
    """Hold the file ``path`` exclusively for the block; waits for whoever holds it.

    The file and its parent directory are created if they do not exist (``mode`` is subject to the
    umask). Not reentrant. A child forked in the block does not hold it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    _mutexes.add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        if file in _mutexes:
            # Explicitly: the copy of a child that was forked just now may still be open.
            fcntl.flock(file, fcntl.LOCK_UN)
            _mutexes.discard(file)
            os.close(file)


def hold(path: Path, *, patience: float = 1.0) -> int | None:
    """Hold ``path`` as a sign of life; an open file number, or ``None`` if another process holds it.

    It is held until that number is closed here and in every forked child (a program that is
    started does not inherit it), or until all of them have died. Never waits for another holder
    longer than ``patience`` seconds: :func:`is_held` may hold the file for a moment.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203 - it is a loop of attempts
            if time.monotonic() > deadline:
                os.close(file)
                return None
            time.sleep(0.01)
        except BaseException:
            os.close(file)
            raise
        else:
            return file


def is_held(path: Path) -> bool:
    """Whether a living process holds ``path`` by :func:`hold`; False if the file does not exist."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(file)
