"""lock: the command that pins what goes into a function's image in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from clustrix_containers.config import file as config
from clustrix_containers.oci.progress import shown

from . import output
from . import submit as work


def add(commands: Any) -> None:
    """Add this command to the parser."""
    lock = commands.add_parser(
        "lock", help="pin what goes into the function's image in a lock file"
    )
    work.takes_function(lock)
    lock.add_argument(
        "-o",
        "--output",
        metavar="PYLOCK",
        help="the lock file (default: that of the function or of clustrix.yml, else pylock.toml"
        " beside the function's file)",
    )
    lock.set_defaults(command=_lock)


def _lock(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs import plan

    target = work.function_of(arguments)
    options = target._options
    path = arguments.output or options.lock or config.load().lock or _beside(arguments.function)
    with shown() as progress:
        made = plan.write_lock(target.__clustrix_function__, options, Path(path), progress=progress)
    files = [package.name for package in made.packages if package.wheel is None]
    output.note(
        f"base {made.base}, packages: {len(made.packages)}"
        + (f"; from installed files: {', '.join(files)}" if files else "")
    )
    sys.stdout.write(f"{path}\n")
    return 0


def _beside(function: str) -> Path:
    place = function.rpartition(":")[0]
    return (Path(place).parent if place.endswith(".py") else Path()) / "pylock.toml"
