"""How things are printed: rich on a terminal, plain when piped, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def emit_json(value: Any) -> None:
    """One JSON document on standard output; what JSON does not know is printed as its repr."""
    sys.stdout.write(json.dumps(value, indent=2, default=repr, ensure_ascii=False) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output: with rules on a terminal, tab-separated when piped."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in header:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console().print(grid)


def note(text: str) -> None:
    """A line for the person, on standard error."""
    sys.stderr.write(f"{text}\n")


def result(value: Any) -> None:
    """A function's value on standard output: its repr, or a string as it is; nothing for None."""
    if value is not None:
        sys.stdout.write(f"{value if isinstance(value, str) else repr(value)}\n")
