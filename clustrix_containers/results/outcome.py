"""How one element ended, by its worker's own mark, verified; and the value that it returned.

The formats of marks and results are those of :mod:`clustrix_containers.worker.contract`. Nothing
is unpickled before the mark's MAC, the result's size and its sha256 have been verified.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import mmap
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.errors import (
    JobError,
    MemoryLimitExceeded,
    RemoteTraceback,
    ResultError,
    ResultLost,
    TimeLimitExceeded,
    WorkerDied,
)
from clustrix_containers.storage import atomic
from clustrix_containers.worker.contract import RESULT_ALIGN, RESULT_MAGIC

Ending = Literal["ok", "error", "unpicklable", "timeout", "died"]
Unpickle = Callable[[memoryview, list[memoryview]], object]

MARK_LIMIT = 4 << 20
"""Bytes: a larger file is no mark of our worker."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One element's outcome that a client waits for: whose it must be, and where it goes.

    ``directory`` is the run's own on this machine, ``key`` the run's, by which a mark is verified.
    """

    directory: Path
    run: str
    element: int
    attempt: int
    key: bytes = field(repr=False)

    @property
    def prefix(self) -> str:
        """How the names of all of its files begin."""
        return f"{self.element}.{self.attempt}."

    @property
    def mark(self) -> Path:
        return self.directory / "results" / f"{self.prefix}mark"

    def is_mark(self, name: str) -> bool:
        """Whether a mark of it may have this name in a store."""
        return bool(re.fullmatch(re.escape(self.prefix) + r"[0-9a-f]{16}\.mark", name))


@dataclass(frozen=True, slots=True)
class Mark:
    """The worker's completion mark, verified. ``size`` and ``max_rss`` in bytes, times in epoch seconds."""

    run: str
    element: int
    attempt: int
    outcome: Ending
    size: int
    sha256: str
    message: str
    traceback: str
    type: str
    exit_code: int | None
    signal: int | None
    started: float
    ended: float
    max_rss: int

    @property
    def result_name(self) -> str:
        """The name of the result's file, wherever it is stored; only with a ``sha256``."""
        return f"{self.element}.{self.attempt}.{self.sha256[:16]}.result"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verified mark and the file with its value or exception (``None`` without one)."""

    mark: Mark
    value: Path | None


def parse_mark(data: bytes, expected: Expected) -> Mark:
    """Read and verify a mark.

    ``ResultError`` if it is not one, or not one of this run, element and attempt that was
    written by somebody who holds the run's key.
    """
    element = expected.element
    try:
        value = json.loads(data)
        mark = Mark(**{name: value[name] for name in Mark.__slots__})
        signed = _mac(expected.key, mark)
        given = str(value["mac"])
        version = value["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(
            f"the completion mark of element {element} cannot be read", element=element
        ) from error
    mine = (mark.run, mark.element, mark.attempt) == (expected.run, element, expected.attempt)
    if not mine or not hmac.compare_digest(given.encode(), signed.encode()):
        raise ResultError(
            f"the completion mark of element {element} was not written by this run's worker",
            hint="Its MAC does not match the run's key. The result is not loaded.",
            element=element,
        )
    if version != 1 or mark.outcome not in get_args(Ending):
        raise ResultError(
            f"the completion mark of element {element} is of version {version!r},"
            f" outcome {mark.outcome!r}",
            hint="The image's worker is newer than this client: update clustrix-containers.",
            element=element,
        )
    if mark.sha256 and not re.fullmatch(r"[0-9a-f]{64}", mark.sha256):
        raise ResultError(f"the mark of element {element} has no valid sha256", element=element)
    return mark


def _mac(key: bytes, mark: Mark) -> str:
    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    parts = (mark.run, mark.element, mark.attempt, mark.outcome, mark.size, mark.sha256)
    text = "\n".join([*map(str, parts), hashed(mark.traceback), hashed(mark.message)])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def load(outcome: Outcome, *, unpickle: Unpickle, status: Status | None = None) -> object:
    """The value that the function returned; or raise what it raised, or why there is neither.

    ``unpickle(pickle, buffers)`` does the unpickling. Large arrays are not copied: they lie
    in a private memory map of the file. The user's exception comes with its own type and the
    remote traceback as ``__cause__``. ``status`` is the cluster's, where it knows better than the
    worker (a memory limit).
    """
    mark = outcome.mark
    if mark.outcome == "ok":
        return _value(outcome, unpickle)
    if mark.outcome == "error" and outcome.value is not None:
        try:
            error = _value(outcome, unpickle)
        except ResultError:
            # A type that does not exist here: its message is raised below.
            error = None
        if isinstance(error, BaseException):
            raise _remote(error, mark, status)
    raise _failure(mark, status) from (RemoteTraceback(mark.traceback) if mark.traceback else None)


def _value(outcome: Outcome, unpickle: Unpickle) -> object:
    mark = outcome.mark
    if outcome.value is None:
        raise ResultLost(f"the result of element {mark.element} no longer exists")
    pickled, buffers = open_result(outcome.value)
    try:
        return unpickle(pickled, buffers)
    except Exception as error:
        why, hint = f"cannot be loaded here: {type(error).__name__}: {error}", None
        if isinstance(error, ModuleNotFoundError):
            why = f"needs the module {error.name!r}, which is not installed here"
            hint = "Install it here, or return plain values from the function."
        raise ResultError(
            f"the result of element {mark.element} {why}",
            hint=hint,
            path=str(outcome.value),
            element=mark.element,
        ) from error


def _remote(error: BaseException, mark: Mark, status: Status | None) -> BaseException:
    remote = RemoteTraceback(mark.traceback)
    # The text shows the original cause already; the object stays in reach.
    remote.__context__, remote.__suppress_context__ = error.__cause__, True
    error.__cause__ = remote
    if status is not None and status.cause is not Cause.NONE and hasattr(error, "add_note"):
        error.add_note(status.message)
    return error


def _failure(mark: Mark, status: Status | None) -> JobError:
    element = mark.element
    fields: dict[str, Any] = {
        "run": mark.run,
        "element": element,
        "exit_code": mark.exit_code,
        "signal": mark.signal,
        "type": mark.type,
        "traceback": mark.traceback,
        "max_rss": mark.max_rss,
    }
    if status is not None and status.cause in _BY_CAUSE:
        return _BY_CAUSE[status.cause](f"element {element}: {status.message}", **fields)
    if mark.outcome == "error":
        text = f"{mark.type}: {mark.message}" if mark.message else mark.type
        return JobError(
            f"element {element} raised {text}",
            hint="The exception itself cannot be loaded here; its traceback is the cause above.",
            **fields,
        )
    if mark.outcome == "unpicklable":
        return ResultError(f"element {element}: {mark.message}", **fields)
    if mark.outcome == "timeout":
        return TimeLimitExceeded(f"element {element} was {mark.message}", **fields)
    return WorkerDied(f"element {element}: {mark.message}", **fields)


_BY_CAUSE: dict[Cause, type[JobError]] = {
    Cause.MEMORY_LIMIT: MemoryLimitExceeded,
    Cause.TIME_LIMIT: TimeLimitExceeded,
}


def without_mark(status: Status, *, run: str, element: int) -> JobError:
    """Why an element that its cluster calls terminal has no result: there is no mark."""
    fields: dict[str, Any] = {"run": run, "element": element, "exit_code": status.exit_code}
    if status.state is State.SUCCEEDED:
        return ResultLost(f"element {element} succeeded, and its result is not there", **fields)
    kind = _BY_CAUSE.get(status.cause, WorkerDied)
    return kind(f"element {element}: {status.message or status.state.value}", **fields)


def save(outcome: Outcome, path: Path) -> None:
    """Write the value's pickle to ``path``, atomically, so that ``pickle.load`` reads it.

    Nothing is unpickled: the opcodes that ask for an out-of-band buffer are replaced by the
    buffer itself (https://peps.python.org/pep-0574/), and frames are dropped, whose lengths
    would be wrong.
    """
    if outcome.value is None:
        raise ResultLost(f"the result of element {outcome.mark.element} no longer exists")
    pickled, buffers = open_result(outcome.value)
    with atomic.replacing(path, mode=0o600) as file:
        for part in _in_band(pickled, buffers):
            file.write(part)


def _in_band(pickled: memoryview, buffers: list[memoryview]) -> Iterator[bytes | memoryview]:
    import pickletools

    if not buffers:
        yield pickled
        return
    given = iter(buffers)
    begun: int | None = None
    for opcode, _, position in pickletools.genops(io.BytesIO(pickled)):
        if begun is not None:
            yield pickled[begun:position]
        begun = position
        if opcode.name == "FRAME":
            begun = None
        elif opcode.name == "NEXT_BUFFER":
            buffer = next(given)
            yield pickle.BYTEARRAY8 + buffer.nbytes.to_bytes(8, "little")
            yield buffer
            begun = None
    yield pickled[begun:]


def open_result(path: Path) -> tuple[memoryview, list[memoryview]]:
    """The pickle in a result file and its out-of-band buffers, as writable views.

    The views are of a private map (copy on write): nothing is read before it is touched,
    nothing is copied before it is written to. ``ResultError`` if the file is malformed.
    """
    with path.open("rb") as file:
        try:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except ValueError as error:
            raise ResultError(f"the result {path.name} is empty") from error
    count = int.from_bytes(view[4:8], "little")
    ends = 8 + 8 * (count + 1)
    if bytes(view[:4]) != RESULT_MAGIC or ends > view.nbytes:
        raise ResultError(f"the result {path.name} is not in the worker's format")
    sizes = [int.from_bytes(view[at : at + 8], "little") for at in range(8, ends, 8)]
    parts = []
    position = _aligned(ends)
    for size in sizes:
        parts.append(view[position : position + size])
        position = _aligned(position + size)
    if position != view.nbytes:
        raise ResultError(f"the result {path.name} is cut off or too long")
    return parts[0], parts[1:]


def _aligned(position: int) -> int:
    return position + -position % RESULT_ALIGN
