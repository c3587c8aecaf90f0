"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = 0o666, durable: bool = False, partial: Path | None = None
) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends; on an error ``path`` stays as it was.

    ``mode`` is subject to the umask. ``durable`` syncs the contents to disk before the rename.
    ``partial`` is the directory of the unfinished file (on the same file system; default: that of
    ``path``). Directories are created if they do not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = partial or path.parent
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o666,
    durable: bool = False,
    partial: Path | None = None,
) -> None:
    """Write a whole file atomically; see :func:`replacing`."""
    with replacing(path, mode=mode, durable=durable, partial=partial) as file:
        file.write(data)
