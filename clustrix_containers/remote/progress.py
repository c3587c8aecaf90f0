"""Progress of anything that takes over a second, on a terminal; silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[str, int, "int | None"], None]
"""Called with a description, the amount done, and the total (``None``: unknown)."""

DELAY = 1.0
"""Seconds before anything is shown."""


def silent(what: str, done: int, total: int | None) -> None:
    """A Progress that shows nothing."""


@contextlib.contextmanager
def shown(stream: Any = None) -> Iterator[Progress]:
    """A Progress with one bar per thing, on standard error if that is a terminal."""
    stream = stream or sys.stderr
    if not getattr(stream, "isatty", lambda: False)():
        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TimeElapsedColumn

    columns = (*Bars.get_default_columns(), TimeElapsedColumn())
    bars = Bars(*columns, console=Console(file=stream), transient=True)
    tasks: dict[str, Any] = {}
    began = time.monotonic()

    def report(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)
        if not bars.live.is_started and time.monotonic() - began > DELAY:
            bars.start()

    try:
        yield report
    finally:
        bars.stop()
