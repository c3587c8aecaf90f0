"""The whole path on this machine: build after an edit, one call, an array; beside bare containers."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.run import Case, measurement, seconds

ELEMENTS = 100
_MODULE = """
import numpy


def work(x):
    return x + {number}
"""


def _project() -> Path:
    """a user of its own with a module ``mine``, removed at the end; the cache stays."""
    home = Path(tempfile.mkdtemp(prefix="clustrix-bench-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["CLUSTRIX_DATA_DIR"] = str(home / "data")
    os.environ["CLUSTRIX_STATE_DIR"] = str(home / "state")
    sys.path.insert(0, str(home))
    (home / "mine.py").write_text(_MODULE.format(number=0))
    return home


def _function() -> Any:
    import mine  # type: ignore[import-not-found]

    import clustrix_containers as cx

    return cx.function(mine.work)


def _bare(root: Path) -> list[str]:
    """The same root file system, interpreter and import, started by bubblewrap alone."""
    return [
        *("bwrap", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"),
        *("--tmpfs", "/tmp", "--unshare-all", "--die-with-parent"),
        *("/opt/venv/bin/python", "-c", "import numpy"),
    ]


def _root() -> Path:
    from clustrix_containers.config import paths as config

    roots = (config.paths().cache / "rootfs").iterdir()
    return max((path for path in roots if path.is_dir()), key=lambda path: path.stat().st_mtime)


@measurement("image after a one-line edit, numpy in it", unit="ms", target=100)
def edit() -> Iterator[Case]:
    home = _project()
    function = _function()
    numbers = iter(range(1, 10_000))

    def after_an_edit() -> float:
        (home / "mine.py").write_text(_MODULE.format(number=next(numbers)))
        return 1000 * seconds(function.build)

    function.build()
    yield Case("edit, `build()`, push to the layout", after_an_edit)
    yield Case("no edit, `build()`", lambda: 1000 * seconds(function.build))


@measurement("one trivial call (numpy imported), submit to result", unit="ms")
def call() -> Iterator[Case]:
    _project()
    function = _function()
    function.submit(1).result()
    numbers = iter(range(10_000))
    yield Case(
        "`submit(x).result()`",
        lambda: 1000 * seconds(lambda: function.submit(next(numbers)).result()),
    )
    command = _bare(_root())
    yield Case(
        "bare bubblewrap, the same import",
        lambda: 1000 * seconds(lambda: subprocess.run(command, check=True)),
    )


@measurement(f"array of {ELEMENTS} trivial calls (numpy imported)", unit="s", runs=3)
def array() -> Iterator[Case]:
    _project()
    function = _function()
    function.submit(1).result()
    command = _bare(_root())

    def bare() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda _: subprocess.run(command, check=True), range(ELEMENTS)))

    offset = iter(range(10_000))

    def ours() -> None:
        start = 1000 * next(offset)
        assert len(list(function.map(range(start, start + ELEMENTS)))) == ELEMENTS

    yield Case("`map`", lambda: seconds(ours))
    yield Case(
        "bare bubblewrap, the same import, as many at once as there are cores",
        lambda: seconds(bare),
    )


@measurement("10,000 calls into one image", unit="s", runs=3)
def many() -> Iterator[Case]:
    from clustrix_containers.capture import pickling
    from clustrix_containers.config import paths as config
    from clustrix_containers.image import build

    def ours() -> None:
        calls = (pickling.dump_call((x,), {})[0] for x in range(10_000))
        build.call_layer(calls, cache=config.paths().cache)

    yield Case("pickled, call layer made", lambda: seconds(ours))
