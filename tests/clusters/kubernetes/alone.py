"""One process at a time changes what lies in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Make the directory, and keep others who ask out of it; it may be removed meanwhile.

    The kernel lets the next one in when this process ends, however that happens.
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
def if_left(directory: Path) -> Iterator[bool]:
    """Whether nobody is in the directory by :func:`alone`; nobody gets in meanwhile, then."""
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
    """Whether it was not removed, or made anew, while this process waited."""
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except FileNotFoundError:
        return False
