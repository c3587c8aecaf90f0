"""Locks between processes and threads, with holders that die and that fork."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustrix_containers.storage.locks import hold, is_held, locked

Start = Callable[..., "subprocess.Popen[str]"]

HEADER = """
import os, sys, time
from pathlib import Path
from clustrix_containers.storage.locks import hold, is_held, locked
path = Path(sys.argv[1])

def report(text):
    print(text, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code that knows ``path``, ``report`` and the locks; kills it at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(path: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", HEADER + code, str(path), *arguments]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def resume(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HELD = """
with locked(path):
    report("holding")
    sys.stdin.readline()
"""

COUNT = """
counter = Path(sys.argv[2])
for _ in range(50):
    with locked(path):
        value = int(counter.read_text())
        time.sleep(0)
        counter.write_text(str(value + 1))
"""


def test_processes_and_threads_exclude_each_other(start: Start, tmp_path: Path) -> None:
    path, counter = tmp_path / "made" / "lock", tmp_path / "counter"
    counter.write_text("0")
    processes = [start(path, COUNT, str(counter)) for _ in range(2)]

    def count() -> None:
        for _ in range(50):
            with locked(path):
                value = int(counter.read_text())
                time.sleep(0)
                counter.write_text(str(value + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert counter.read_text() == "200"


def test_a_killed_holder_frees_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start(path, HELD)
    assert line(holder) == "holding"
    waiter = start(path, HELD)
    assert is_held(path)
    holder.kill()
    assert line(waiter) == "holding"


def test_the_mode_and_an_error_in_the_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held: dict[bool, bool] = {True: True}
    with pytest.raises(KeyError), locked(path, mode=0o600):
        del held[is_held(path)], held[is_held(path)]
    assert held == {}
    assert not is_held(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_forked_child_neither_frees_nor_prolongs_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start(
        path,
        """
with locked(path):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        report("held" if is_held(path) else "free")
        other = os.fork()
        if not other:
            time.sleep(600)
        report(other)
        sys.stdin.readline()
""",
    )
    # The child has left the block by its end: the parent's lock is untouched.
    assert line(holder) == "held"
    other = int(line(holder))
    assert is_held(path)
    holder.kill()
    holder.wait()
    with locked(path):
        os.kill(other, 0)


LIVE = """
number = hold(path)
report(number is not None)
sys.stdin.readline()
"""


def test_hold_is_a_sign_of_life(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists()
    holder = start(path, LIVE)
    assert line(holder) == "True"
    assert is_held(path)
    assert hold(path, patience=0.05) is None
    holder.kill()
    holder.wait()
    assert not is_held(path)
    number = hold(path, patience=0)
    assert number is not None
    # Also within one process.
    assert is_held(path)
    assert hold(path, patience=0) is None
    os.close(number)
    assert not is_held(path)


def test_hold_survives_in_a_forked_child_and_not_in_a_program(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    parent = start(
        path,
        """
import subprocess
number = hold(path)
program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
child = os.fork()
if child:
    report(child)
    os._exit(0)
sys.stdin.readline()
os._exit(0)
""",
    )
    child = int(line(parent))
    parent.wait()
    assert is_held(path)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not is_held(path))


def test_asking_disturbs_nobody(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    asking = start(path, "report('asks')\nwhile True: is_held(path)")
    assert line(asking) == "asks"
    for _ in range(20):
        number = hold(path)
        assert number is not None
        os.close(number)
