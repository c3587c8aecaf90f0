"""A lock of a directory: one process at a time starts or ends the cluster in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Create the directory and lock it; it may be removed in the block.

    The kernel unlocks it when this process ends, however that happens.
    """
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, directory):
                yield
                return
        finally:
            os.close(lock)


@contextlib.contextmanager
def if_unlocked(directory: Path) -> Iterator[bool]:
    """Whether no process has the directory :func:`locked`; if so, this one has in the block."""
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = _is_at(lock, directory)
        except BlockingIOError:
            left = False
        yield left
    finally:
        os.close(lock)


def _is_at(handle: int, directory: Path) -> bool:
    """Whether it was neither removed nor replaced while this process waited."""
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except FileNotFoundError:
        return False
