"""The life of one attempt, as its supervisor writes it and any process reads it.

``events.jsonl``: one JSON object a line, each appended with one write. ``lock``: held by the
supervisor for as long as it lives. ``cancel``: element numbers, or ``*``, one a line.
``wake``: a FIFO that makes the supervisor look at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from clustrix_containers.api.status import Cause, State, Status

RUNNING = Status(State.RUNNING)
SUCCEEDED = Status(State.SUCCEEDED, exit_code=0)
PENDING = Status(State.PENDING)


class Writer:
    """The supervisor's end."""

    def __init__(self, control: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(control / "events.jsonl", flags, 0o600)

    def note(self, **event: object) -> None:
        """Something about the supervisor itself: ``event`` is ``start`` or ``end``."""
        self._append({**event, "time": round(time.time(), 3)})

    def status(self, element: int, status: Status) -> None:
        event: dict[str, object] = {"element": element, "state": status.state.value}
        if status.state.terminal and status != SUCCEEDED:
            event["cause"] = status.cause.value
            event["exit_code"] = status.exit_code
            event["message"] = status.message
        self._append({**event, "time": round(time.time(), 3)})

    def _append(self, event: dict[str, object]) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")


class Reader:
    """A client's end: reads only what is new, keeps one status per element that has one.

    Several threads may use it: a run's watcher, and whoever follows its output.
    """

    def __init__(self, control: Path) -> None:
        self.control = control
        self.statuses: dict[int, Status] = {}
        self.started: dict[str, object] | None = None
        self.ended = False
        self._offset = 0
        self._lock = threading.Lock()

    def update(self) -> None:
        try:
            with self._lock, (self.control / "events.jsonl").open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._take(json.loads(line))
        except FileNotFoundError:
            return

    def _take(self, event: dict[str, object]) -> None:
        if "element" not in event:
            if event["event"] == "start":
                self.started = event
            self.ended = event["event"] == "end"
            return
        state = State(event["state"])
        if state is State.RUNNING:
            status = RUNNING
        elif state is State.SUCCEEDED:
            status = SUCCEEDED
        else:
            code = event["exit_code"]
            status = Status(
                state,
                Cause(event["cause"]),
                code if isinstance(code, int) else None,
                str(event["message"]),
            )
        self.statuses[int(str(event["element"]))] = status


def has_started(control: Path) -> bool:
    """Whether a supervisor has ever begun with this attempt."""
    try:
        return (control / "events.jsonl").stat().st_size > 0
    except FileNotFoundError:
        return False


def take_lock(control: Path, *, patience: float = 1.0) -> int | None:
    """The attempt's lock for as long as the file number is open; ``None`` if another holds it.

    A reader may hold it for a moment, to see whether anybody does: hence the patience (s).
    """
    file = os.open(control / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203
            if time.monotonic() > deadline:
                os.close(file)
                return None
            time.sleep(0.01)
        else:
            return file


def is_locked(control: Path) -> bool:
    """Whether a supervisor lives for this attempt."""
    try:
        file = os.open(control / "lock", os.O_RDONLY | os.O_CLOEXEC)
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


def request_cancel(control: Path, elements: Iterable[int] | None) -> None:
    """Ask the supervisor to end these elements (``None``: all), and wake it."""
    lines = ["*"] if elements is None else map(str, elements)
    data = "".join(f"{line}\n" for line in lines).encode()
    file = os.open(control / "cancel", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, data)
    finally:
        os.close(file)
    wake(control)


def wake(control: Path) -> None:
    """Make the supervisor look at once, if there is one."""
    with contextlib.suppress(OSError):
        file = os.open(control / "wake", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(file, b"c")
        finally:
            os.close(file)


def open_wake(control: Path) -> int:
    """The supervisor's end of the FIFO; open for writing too, so that it never says end of file."""
    path = control / "wake"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Requests:
    """What was asked to be cancelled, read bit by bit."""

    def __init__(self, control: Path) -> None:
        self._path = control / "cancel"
        self._offset = 0
        self.everything = False
        self.elements: set[int] = set()

    def update(self) -> bool:
        """Whether there is something new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.split():
            if line == b"*":
                self.everything = True
            elif line.isdigit():
                self.elements.add(int(line))
        return bool(complete)

    def __contains__(self, element: int) -> bool:
        return self.everything or element in self.elements
