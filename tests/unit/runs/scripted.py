"""A cluster whose elements do what the test says: for what a real one does not do on demand."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustrix_containers.api.status import State, Status
from clustrix_containers.clusters import Notify
from clustrix_containers.clusters.task import Fetched, Handle, Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.worker.contract import RESULT_ALIGN, RESULT_MAGIC


@dataclass(eq=False)
class ScriptedCluster:
    """``status`` gives an element's status, ``fetched`` what came of fetching its outcome."""

    status: Callable[[Handle], Status] = lambda _handle: Status(State.RUNNING)
    fetched: Callable[[Task, Handle], Fetched] = lambda _task, _handle: Fetched()
    poll_interval: tuple[float, float] = (0.01, 0.05)
    polls: list[list[Handle]] = field(default_factory=list)
    pollers: set[int] = field(default_factory=set)
    """The threads that asked."""
    fetches: list[list[Handle]] = field(default_factory=list)
    submitted: list[Task] = field(default_factory=list)
    cancelled: list[Handle] = field(default_factory=list)
    notify: dict[str, Notify] = field(default_factory=dict)

    def submit(self, task: Task) -> Sequence[Handle]:
        self.submitted.append(task)
        return [Handle(task.run, task.attempt, element, "7") for element in task.elements]

    def states(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        self.polls.append(list(handles))
        self.pollers.add(threading.get_ident())
        return {handle: self.status(handle) for handle in handles}

    def subscribe(self, run: str, notify: Notify) -> Callable[[], None]:
        self.notify[run] = notify
        return lambda: None

    def fetch(self, task: Task, handles: Sequence[Handle]) -> Mapping[Handle, Fetched]:
        self.fetches.append(list(handles))
        return {handle: self.fetched(task, handle) for handle in handles}

    def logs(
        self, handles: Sequence[Handle], *, follow: bool = False
    ) -> Iterator[tuple[Handle, bytes]]:
        yield from ((handle, b"its last words\n") for handle in handles)

    def cancel(self, handles: Sequence[Handle]) -> None:
        self.cancelled += handles


def unreachable(_handle: Handle) -> Status:
    raise ClusterError("connection refused")


def write_outcome(directory: Path, handle: Handle, value: Any) -> None:
    """What the worker writes of a call that returned ``value``, in its order."""
    pickled = pickle.dumps(value)
    head = RESULT_MAGIC + struct.pack("<IQ", 0, len(pickled))
    data = b"".join(part + bytes(-len(part) % RESULT_ALIGN) for part in (head, pickled))
    digest = hashlib.sha256(data).hexdigest()
    name = f"{handle.element}.{handle.attempt}"
    results = directory / "results"
    (results / f"{name}.{digest[:16]}.result").write_bytes(data)
    empty = hashlib.sha256(b"").hexdigest()
    signed = [handle.run, handle.element, handle.attempt, "ok", len(data), digest, empty, empty]
    key = (directory / "key").read_bytes()
    mac = hmac.new(key, "\n".join(map(str, signed)).encode(), hashlib.sha256).hexdigest()
    now = time.time()
    mark = {
        "version": 1,
        "run": handle.run,
        "element": handle.element,
        "attempt": handle.attempt,
        "outcome": "ok",
        "size": len(data),
        "sha256": digest,
        "mac": mac,
        "message": "",
        "traceback": "",
        "type": "",
        "exit_code": 0,
        "signal": None,
        "started": now,
        "ended": now,
        "max_rss": 1,
    }
    part = results / f".{name}.part"
    part.write_text(json.dumps(mark))
    part.replace(results / f"{name}.mark")
