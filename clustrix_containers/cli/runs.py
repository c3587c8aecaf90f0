"""logs, result, cancel: the commands that take a run."""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
from pathlib import Path
from typing import Any

from clustrix_containers.api.jobs import Job
from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.errors import (
    ClusterError,
    ConfigError,
    Error,
    RemoteTraceback,
    UntrustedResultError,
)
from clustrix_containers.runs.attach import attach
from clustrix_containers.runs.watching.watched import WatchedRun

from . import output


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    logs = commands.add_parser("logs", help="print the output of a run")
    logs.add_argument("run", metavar="RUN[/ELEMENT]")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="follow the output until the run ends"
    )
    logs.set_defaults(command=_logs)

    result = commands.add_parser("result", help="wait for a run and print its result")
    result.add_argument("run", metavar="RUN[/ELEMENT]")
    result.add_argument("--json", action="store_true", help="print the result as JSON")
    result.add_argument(
        "--output", metavar="FILE", help="write the result as a pickle file instead"
    )
    result.add_argument("--timeout", metavar="TIME", help="how long to wait, for example 30m")
    takes_trust(result)
    result.set_defaults(command=_result)

    cancel = commands.add_parser("cancel", help="cancel runs, or elements of them")
    cancel.add_argument("runs", nargs="+", metavar="RUN[/ELEMENT]")
    cancel.set_defaults(command=_cancel)

    for parser in (logs, result, cancel):
        parser.add_argument(
            "--on", metavar="TARGET", help="where to look for a run that is not in the local record"
        )


def takes_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the result of an image that you did not build",
    )


def _select(text: str, on: str | None, *, watch: bool = True) -> tuple[WatchedRun, list[Job]]:
    """The run of ``RUN[/ELEMENT]``, and its jobs or the one that is named."""
    name, slash, element = text.partition("/")
    if slash and not element.isdecimal():
        raise ConfigError(f"{text!r}: expected RUN/ELEMENT, where ELEMENT is a number from 0")
    run = attach(name, on=on, watch=watch)
    if not slash:
        return run, run.jobs
    if int(element) >= len(run.jobs):
        raise ClusterError(f"{run.id} has {len(run.jobs)} elements, 0 to {len(run.jobs) - 1}")
    return run, [run.jobs[int(element)]]


def _logs(arguments: argparse.Namespace) -> int:
    run, jobs = _select(arguments.run, arguments.on, watch=arguments.follow)
    for job in jobs:
        for chunk in run.logs(job.element, follow=arguments.follow):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return 0


def _result(arguments: argparse.Namespace) -> int:
    run, jobs = _select(arguments.run, arguments.on)
    if arguments.trust:
        run.trust()
    timeout = parse_duration(arguments.timeout) if arguments.timeout else None
    if arguments.output:
        if len(jobs) != 1:
            raise ConfigError("--output takes one element: RUN/ELEMENT")
        run.save(jobs[0], Path(arguments.output), timeout)
        return 0
    return print_results(jobs, array=run.is_array, timeout=timeout, as_json=arguments.json)


def print_results(
    jobs: list[Job], *, array: bool, timeout: float | None = None, as_json: bool
) -> int:
    """Print the results of these jobs in order; 1 if any of them failed.

    ``timeout`` is in seconds, for each of them. As JSON, the results of an array are a list, with
    ``null`` for an element that failed.
    """
    values, failed = [], False
    for job in jobs:
        name = f"{job.run}/{job.element}"
        if concurrent.futures.wait([job], timeout).not_done:
            raise ClusterError(f"{name} is not done yet")
        value = None
        try:
            value = job.result()
        except UntrustedResultError:
            raise
        except BaseException as error:
            if len(jobs) == 1 and not (array and as_json):
                if isinstance(error, Error):
                    raise
                output.note(_exception_text(error))
                return 1
            output.note(f"{name}: {type(error).__name__}: {error}")
            failed = True
        values.append(value)
    if as_json:
        output.emit_json(values if array else values[0])
    else:
        for value in values:
            output.result(value)
    return int(failed)


def _exception_text(error: BaseException) -> str:
    """The user's exception as the container printed it."""
    cause = error.__cause__
    text = f"{type(error).__name__}: {error}"
    if isinstance(cause, RemoteTraceback):
        text = cause.text.rstrip()
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _cancel(arguments: argparse.Namespace) -> int:
    for text in arguments.runs:
        run, jobs = _select(text, arguments.on, watch=False)
        run.cancel([job.element for job in jobs])
        output.note(f"cancelled {text}")
    return 0
