"""The command line: ``clustrix-containers``, ``cxc`` for short.

Results go to standard output, everything else to standard error. Exit codes: 0 for success, 1 for
a failure, 2 for wrong usage, 130 when interrupted, 141 when standard output was closed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from clustrix_containers.errors import Error
from clustrix_containers.worker.contract import package_version


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from . import doctor, images, listing, runs, submit

    top = argparse.ArgumentParser(
        prog="cxc",
        description="A Python function becomes one OCI image, and that image runs anywhere.",
        epilog="Run `cxc COMMAND --help` for more about a command.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (submit, images, runs, listing, doctor):
        module.add(commands)
    return top


class _Version(argparse.Action):
    """Reads the version from the installed metadata only when it is requested."""

    def __call__(self, *_: object) -> None:
        sys.stdout.write(f"clustrix-containers {package_version()}\n")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except Error as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
