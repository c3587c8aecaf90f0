"""The command line: ``clustrix-containers``, short ``cxc``.

Results go to standard output, all else to standard error. Exit codes: 0 done, 1 it failed,
2 it was asked wrongly, 130 interrupted.
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
    from . import doctor, lock
    from . import runs as keep
    from . import submit as work

    top = argparse.ArgumentParser(
        prog="cxc",
        description="A Python function becomes one OCI image, and that image runs anywhere.",
        epilog="`cxc COMMAND --help` says more of each.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for add in (work.add, lock.add, keep.add, doctor.add):
        add(commands)
    return top


class _Version(argparse.Action):
    """Reads the version from the installed metadata only when it is asked for."""

    def __call__(self, *_: object) -> None:
        sys.stdout.write(f"clustrix-containers {package_version()}\n")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
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
