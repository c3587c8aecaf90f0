"""Files that a container may have written: opened without following links, read without waiting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def no_follow(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open`; ``OSError`` for a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def read(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes from its beginning."""
    with open(path, "rb", opener=no_follow) as file:
        return file.read(limit) or b""


def pieces(path: Path) -> Iterator[bytes]:
    """All of it, in pieces of at most 1 MiB."""
    with open(path, "rb", buffering=0, opener=no_follow) as file:
        while piece := file.read(1 << 20):
            yield piece
