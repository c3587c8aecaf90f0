"""Outcomes that travel in a termination message, or as one stream (``contract.py``, ``run/deliver``)."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers import contract
from clustrix_containers.errors import ResultError

from .outcome import MARK_LIMIT

_MOST = 65 * contract.MESSAGE_LIMIT


@dataclass(frozen=True, slots=True)
class Inline:
    """An outcome that is all in the message."""

    mark: bytes
    result: bytes | None


@dataclass(frozen=True, slots=True)
class Stored:
    """An outcome that lies in a store, under these names."""

    kind: str
    mark: str
    result: str | None
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An outcome that did not get out of the container."""

    reason: str


def read(message: str) -> Inline | Stored | Undelivered:
    """What a termination message of the worker says; ResultError if it is malformed."""
    kind, rest = message[:4], message[4:]
    try:
        if kind == contract.INLINE:
            inflate = zlib.decompressobj()
            data = inflate.decompress(base64.b85decode(rest), _MOST)
            if inflate.unconsumed_tail or not inflate.eof:
                raise ValueError("it is too long or cut off")
            size = int.from_bytes(data[:4], "little")
            mark, result = data[4 : 4 + size], data[4 + size :]
            return Inline(mark, result or None)
        if kind == contract.STORED:
            said = json.loads(rest)
            return Stored(said["store"], said["mark"], said["result"], said.get("manifest"))
        if kind == contract.FAILED:
            return Undelivered(rest)
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise ResultError(f"a termination message cannot be read: {error}") from error
    raise ResultError("a termination message is not the worker's")


def put(directory: Path, element: int, attempt: int, mark: bytes, result: bytes | None) -> None:
    """Write an outcome where ``results.directory.collect`` looks for it, the mark last."""
    parts = [len(mark).to_bytes(4, "little") + mark, result or b""]
    receive(iter(parts), directory, element, attempt)


def receive(stream: Iterator[bytes], directory: Path, element: int, attempt: int) -> None:
    """Write an outcome that arrives as ``deliver.py give`` writes it; nothing is kept in memory."""
    head = bytearray()
    size = MARK_LIMIT
    for chunk in stream:
        head += chunk
        if len(head) >= 4:
            size = int.from_bytes(head[:4], "little")
            if size > MARK_LIMIT:
                raise ResultError(f"the mark of element {element} is too long")
        if len(head) >= 4 + size:
            break
    if len(head) < 4 + size:
        raise ResultError(f"the outcome of element {element} was cut off")
    mark, rest = bytes(head[4 : 4 + size]), bytes(head[4 + size :])
    results = directory / "results"
    try:
        said = json.loads(mark)
        expected, digest = int(said["size"]), str(said["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(f"the mark of element {element} cannot be read") from error
    if digest:
        name = f"{element}.{attempt}.{digest[:16]}.result"
        if "/" in name:
            raise ResultError(f"the mark of element {element} has no valid sha256")
        _write(results / name, _exactly(rest, stream, expected, element))
    _write(results / f"{element}.{attempt}.mark", iter([mark]))


def _exactly(first: bytes, stream: Iterator[bytes], size: int, element: int) -> Iterator[bytes]:
    left = size - len(first)
    yield first
    while left > 0:
        chunk = next(stream, b"")
        if not chunk:
            raise ResultError(f"the result of element {element} was cut off")
        left -= len(chunk)
        yield chunk
    if left < 0:
        raise ResultError(f"the result of element {element} is longer than its mark says")


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
