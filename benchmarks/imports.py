"""What importing costs, in a fresh process whose start is not counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.run import Case, measurement

_CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def _import_of(module: str) -> Callable[[], float]:
    command = [sys.executable, "-c", _CODE.format(module)]
    # As after `pip install`, which compiles: a development machine may have switched that off.
    names = {"PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in names}

    def once() -> float:
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        return 1000 * float(done.stdout)

    once()
    return once


@measurement("import", unit="ms", target=30, runs=21)
def imports() -> Iterator[Case]:
    for module in ("clustrix_containers", "concurrent.futures", "cloudpickle"):
        yield Case(f"`import {module}`", _import_of(module))
