"""Runs the worker once per line of its input, in a copy of this process: for thousands of elements.

``forker.py WORKER``: the worker is imported once. A line in is JSON, ``{"start": number,
"environment": {…}}`` or ``{"signal": n, "to": number}``; a line out is ``{"ended": number, "code":
exit code}``. The standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any


def main(path: str) -> None:
    worker = _imported(path)
    wake, wakes = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 1 << 16)
            _reap(running)
        if 0 not in ready:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "start" in order:
                running[_fork(worker, order)] = order["start"]
            else:
                _signal(running, order["to"], order["signal"])


def _imported(path: str) -> Any:
    """The worker, and what it will import in any case."""
    import hashlib  # noqa: F401
    import hmac  # noqa: F401
    import pickle  # noqa: F401
    import resource  # noqa: F401

    sys.path[:0] = [str(Path(path).parent), str(Path(path).with_name("lib"))]
    import cloudpickle  # noqa: F401
    import deliver  # type: ignore[import-not-found]  # noqa: F401

    spec = importlib.util.spec_from_file_location("worker", path)
    assert spec and spec.loader
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    del sys.path[:2]
    return worker


def _fork(worker: Any, order: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 125
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ.clear()
        os.environ.update(order["environment"])
        code = worker.main()
    finally:
        os._exit(code)


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if (number := running.pop(pid, None)) is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        end = {"ended": number, "code": code if code >= 0 else 128 - code}
        sys.stdout.write(json.dumps(end) + "\n")
        sys.stdout.flush()


def _signal(running: dict[int, int], number: int, sent: int) -> None:
    for pid, known in running.items():
        if known == number:
            os.kill(pid, sent)


if __name__ == "__main__":
    main(sys.argv[1])
