"""The life of one attempt, as its supervisor writes it and any process reads it.

``events.jsonl``: one JSON object a line, each appended with one write. ``lock``: held by the
supervisor for as long as it lives. ``cancel``: element numbers, or ``*``, one a line.
``wake``: a FIFO that wakes the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clustrix_containers.api.status import Cause, State, Status

LOCK = "lock"
RUNNING = Status(State.RUNNING)
SUCCEEDED = Status(State.SUCCEEDED, exit_code=0)
PENDING = Status(State.PENDING)


class Writer:
    """The supervisor's end."""

    def __init__(self, control: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(control / "events.jsonl", flags, 0o600)

    def started(self, pid: int, host: str) -> None:
        self._append({"event": "start", "pid": pid, "host": host})

    def ended(self) -> None:
        self._append({"event": "end"})

    def status(self, element: int, status: Status) -> None:
        how = {"state": status.state.value, "cause": status.cause.value}
        why = {"exit_code": status.exit_code, "message": status.message}
        self._append({"element": element, **how, **why})

    def _append(self, event: dict[str, Any]) -> None:
        os.write(self._file, json.dumps({**event, "time": round(time.time(), 3)}).encode() + b"\n")


class _Tail:
    """The complete lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        *lines, rest = data.split(b"\n")
        self._offset += len(data) - len(rest)
        return lines


class Reader:
    """A client's end: reads only what is new, keeps one status per element that has one.

    Safe for several threads: a run's watcher, and whoever follows its output.
    """

    def __init__(self, control: Path) -> None:
        self.control = control
        self.statuses: dict[int, Status] = {}
        self.started: dict[str, Any] | None = None
        self.ended = False
        self._tail = _Tail(control / "events.jsonl")
        self._lock = threading.Lock()

    def update(self) -> None:
        with self._lock:
            for event in map(json.loads, self._tail.lines()):
                if "element" in event:
                    self.statuses[event["element"]] = _status(event)
                elif event["event"] == "start":
                    self.started = event
                else:
                    self.ended = True


def _status(event: Mapping[str, Any]) -> Status:
    cause = Cause(event.get("cause", Cause.NONE))
    return Status(State(event["state"]), cause, event.get("exit_code"), event.get("message", ""))


def has_started(control: Path) -> bool:
    """Whether a supervisor has ever started this attempt."""
    try:
        return (control / "events.jsonl").stat().st_size > 0
    except FileNotFoundError:
        return False


def request_cancel(control: Path, elements: Iterable[int] | None) -> None:
    """Ask the supervisor to end these elements (``None``: all), and wake it."""
    lines = ["*"] if elements is None else map(str, elements)
    with (control / "cancel").open("ab", buffering=0) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    wake(control)


def wake(control: Path) -> None:
    """Wake the supervisor, if there is one."""
    with contextlib.suppress(OSError):
        file = os.open(control / "wake", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(file, b"c")
        finally:
            os.close(file)


def open_wake(control: Path) -> int:
    """The supervisor's end of the FIFO; open for writing too, so that it never reports its end."""
    path = control / "wake"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class CancelRequests:
    """The elements that are to be cancelled; reads only what is new."""

    def __init__(self, control: Path) -> None:
        self._tail = _Tail(control / "cancel")
        self._lines: set[bytes] = set()

    def update(self) -> None:
        self._lines.update(self._tail.lines())

    def __contains__(self, element: int) -> bool:
        return b"*" in self._lines or b"%d" % element in self._lines
