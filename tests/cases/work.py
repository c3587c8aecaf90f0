"""Functions that the contract suite runs: slow, greedy, loud, deadly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def divide(x: int) -> float:
    return 1 / x


def square(x):
    return x * x


def wait_for(path_exists_seconds):
    time.sleep(path_exists_seconds)
    return path_exists_seconds


def started_and_ended(seconds):
    started = time.time()
    time.sleep(seconds)
    return started, time.time()


def counts_aloud(n, pause):
    for i in range(n):
        print(f"line {i} – ünïcode")
        time.sleep(pause)
    print("to stderr", file=sys.stderr)
    return n


def eats_memory(mebibytes):
    held = []
    for _ in range(mebibytes):
        held.append(bytearray(os.urandom(1024) * 1024))
    return len(held)


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def exits(code):
    sys.exit(code)


def leaves_children():
    children = [subprocess.Popen(["/bin/sh", "-c", "sleep 987"]) for _ in range(3)]
    print("children", *[child.pid for child in children], flush=True)
    time.sleep(1000)


def unpicklable():
    import threading

    return {"made": threading.Lock()}


def big(size):
    import numpy

    return numpy.arange(size // 8)


def environment():
    """What the container looks like from inside."""
    def writable(path):
        try:
            with open(os.path.join(path, "probe"), "w") as file:
                file.write("x")
        except OSError:
            return False
        return True

    return {
        "uid": os.getuid(),
        "home": os.environ.get("HOME"),
        "path": sys.path,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "environ": dict(os.environ),
        "writable": [path for path in ("/", "/tmp", "/opt/venv", "/opt/clustrix/code") if writable(path)],
        "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
        "root": sorted(os.listdir("/")),
    }


def plots():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2, 3])
    figure.savefig("/tmp/plot.png")
    return os.path.getsize("/tmp/plot.png") > 1000


def pool():
    import multiprocessing

    with multiprocessing.Pool(2) as workers:
        return workers.map(square, [1, 2, 3])


class Stubborn(Exception):
    """Cannot be made again from its args."""

    def __init__(self, code, *, place):
        super().__init__(f"code {code} at {place}")
        self.code = code


def raises_stubborn():
    raise Stubborn(7, place="here")


def raises_chain():
    try:
        {}["x"]
    except KeyError as error:
        raise ValueError("chained") from error


def imports_what_is_not_there():
    import importlib

    name = "".join(["pyt", "est"])
    return importlib.import_module(name).__name__


def reads_marker() -> str:
    return Path("/etc/from-the-dockerfile").read_text()


def random_bytes(seconds, size):
    time.sleep(seconds)
    return os.urandom(size)


def seen_while_it_runs(seconds):
    """What the function can read of its container: variables, command lines, mounts."""
    time.sleep(seconds)
    seen = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ", "mountinfo"):
            try:
                seen.append((process / name).read_bytes())
            except OSError:
                pass
    return seen
