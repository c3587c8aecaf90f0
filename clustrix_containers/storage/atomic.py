"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, durable: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends; on an error ``path`` stays as it was.

    ``mode`` is subject to the umask. ``durable`` syncs the contents to disk before the rename.
    The parent directory is created if it does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = False) -> None:
    """Write a whole file atomically; see :func:`replacing`."""
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)
