"""ps, logs, result, cancel, rerun, prune: the commands that take a run or an image."""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from clustrix_containers.api.jobs import Job
from clustrix_containers.api.options import Options
from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.api.status import State
from clustrix_containers.clusters import staging
from clustrix_containers.errors import ClusterError, ConfigError, UntrustedResultError
from clustrix_containers.runs.attach import attach
from clustrix_containers.runs.destination import resolve
from clustrix_containers.runs.record import Run, open_record
from clustrix_containers.runs.submit import rerun
from clustrix_containers.runs.watched import WatchedRun

from . import output, submit
from .listing import RunStates, query_states

QUERY_TIMEOUT = 5.0
"""Seconds to wait for targets that do not respond."""


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    ps = commands.add_parser("ps", help="list the runs, newest first")
    ps.add_argument("-n", "--last", type=int, default=20, metavar="N", help="how many (default 20)")
    ps.add_argument("-a", "--all", action="store_true", help="all of them")
    ps.add_argument("--json", action="store_true")
    ps.set_defaults(command=_ps)

    logs = commands.add_parser("logs", help="print the output of a run")
    logs.add_argument("run", metavar="RUN[/ELEMENT]")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="follow the output until the run ends"
    )
    _takes_on(logs)
    logs.set_defaults(command=_logs)

    result = commands.add_parser("result", help="wait for a run and print its result")
    result.add_argument("run", metavar="RUN[/ELEMENT]")
    result.add_argument("--json", action="store_true")
    result.add_argument(
        "--output", metavar="FILE", help="write the result as a pickle file instead"
    )
    result.add_argument("--timeout", metavar="TIME", help="how long to wait (30m)")
    result.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the result of an image that you did not build",
    )
    _takes_on(result)
    result.set_defaults(command=_result)

    cancel = commands.add_parser("cancel", help="cancel runs, or elements of them")
    cancel.add_argument("runs", nargs="+", metavar="RUN[/ELEMENT]")
    _takes_on(cancel)
    cancel.set_defaults(command=_cancel)

    again = commands.add_parser("rerun", help="run the very same image again")
    again.add_argument(
        "digest", metavar="DIGEST", help="or a unique prefix of it, or registry/repository@sha256:…"
    )
    again.add_argument("--on", metavar="TARGET")
    again.add_argument("--detach", "-d", action="store_true")
    again.add_argument("--json", action="store_true")
    again.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the result of an image that you did not build",
    )
    again.set_defaults(command=_rerun)

    prune = commands.add_parser("prune", help="remove old runs, and images that no run needs")
    prune.add_argument(
        "--older-than", default="30d", metavar="TIME", help="runs to remove (default 30d)"
    )
    prune.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    prune.set_defaults(command=_prune)


def _split(text: str) -> tuple[str, int | None]:
    name, slash, element = text.partition("/")
    if slash and not element.isdecimal():
        raise ConfigError(f"{text!r}: expected RUN/ELEMENT, where ELEMENT is a number from 0")
    return name, int(element) if slash else None


def _takes_on(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", metavar="TARGET", help="look for a run there that this machine has no record of"
    )


def _jobs(text: str, on: str | None) -> tuple[WatchedRun, list[Job]]:
    name, element = _split(text)
    run = attach(name, on=on)
    if element is None:
        return run, run.jobs
    if element >= len(run.jobs):
        raise ClusterError(f"{run.id} has {len(run.jobs)} elements, 0 to {len(run.jobs) - 1}")
    return run, [run.jobs[element]]


def _ps(arguments: argparse.Namespace) -> int:
    listed = open_record().runs(limit=None if arguments.all else arguments.last)
    found = query_states(listed, QUERY_TIMEOUT)
    if arguments.json:
        output.emit_json([_summary(run, found[run.id]) for run in listed])
        return 0
    output.table(
        ("RUN", "TARGET", "STATE", "ELEMENTS", "CREATED", "IMAGE"),
        (
            (
                run.id,
                run.target,
                _shown(run, found[run.id]),
                str(run.count),
                _ago(run.created),
                run.image[7:19],
            )
            for run in listed
        ),
    )
    return 0


def _summary(run: Run, seen: RunStates) -> dict[str, Any]:
    return {
        "run": run.id,
        "function": run.name,
        "target": run.target,
        "state": _state(run, seen),
        "count": run.count,
        "created": run.created,
        "image": run.image,
        "seen": {state.value: count for state, count in seen.states.items()},
        "seen_at": seen.at,
    }


def _state(run: Run, seen: RunStates) -> str:
    if not run.submitted:
        return "not submitted"
    return _counts(seen) if seen.now else State.UNKNOWN.value


def _shown(run: Run, seen: RunStates) -> str:
    state = _state(run, seen)
    if state != State.UNKNOWN.value:
        return state
    last = f" ({_counts(seen)} then)" if seen.states else ""
    return f"{run.target} out of reach since {_ago(seen.at)}{last}"


def _counts(seen: RunStates) -> str:
    if len(seen.states) == 1:
        return next(iter(seen.states)).value
    return ", ".join(f"{count} {state.value}" for state, count in seen.states.items())


def _ago(then: float) -> str:
    seconds = int(time.time() - then)
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size} {unit} ago"
    return datetime.datetime.fromtimestamp(then).astimezone().strftime("%Y-%m-%d %H:%M")


def _logs(arguments: argparse.Namespace) -> int:
    name, element = _split(arguments.run)
    run = attach(name, on=arguments.on, watch=arguments.follow)
    chosen = run.jobs if element is None else [run.jobs[element]]
    for job in chosen:
        for chunk in run.logs(job.element, follow=arguments.follow):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return 0


def _result(arguments: argparse.Namespace) -> int:
    run, jobs = _jobs(arguments.run, arguments.on)
    if arguments.trust:
        run.trust()
    timeout = parse_duration(arguments.timeout) if arguments.timeout else None
    if arguments.output:
        if len(jobs) != 1:
            raise ConfigError("--output takes one element: RUN/ELEMENT")
        run.save(jobs[0], Path(arguments.output), timeout)
        return 0
    return show(run, jobs, timeout=timeout, as_json=arguments.json)


def show(run: WatchedRun, jobs: list[Job], *, timeout: float | None = None, as_json: bool) -> int:
    """Print the results of these jobs in order; 1 if any of them failed."""
    values, failed = [], False
    for job in jobs:
        try:
            value = job.result(timeout)
        except TimeoutError:
            if job.done():
                raise
            raise ClusterError(f"{run.id}/{job.element} is not done yet") from None
        except UntrustedResultError:
            raise
        except Exception as error:
            if len(jobs) == 1 and not as_json:
                output.note(submit.exception_text(error))
                return 1
            output.note(f"{run.id}/{job.element}: {type(error).__name__}: {error}")
            failed, value = True, None
        values.append(value)
    if as_json:
        output.emit_json(values if run.is_array else values[0])
    else:
        for value in values:
            output.result(value, as_json=False)
    return int(failed)


def _cancel(arguments: argparse.Namespace) -> int:
    for text in arguments.runs:
        name, element = _split(text)
        run = attach(name, on=arguments.on, watch=False)
        run.cancel([job.element for job in run.jobs] if element is None else [element])
        output.note(f"{text} is cancelled")
    return 0


def _rerun(arguments: argparse.Namespace) -> int:
    options = Options().but(**({"on": arguments.on} if arguments.on else {}))
    run = rerun(arguments.digest, options, trust=arguments.trust)
    if arguments.detach:
        sys.stdout.write(f"{run.id}\n")
        return 0
    output.note(f"run {run.id}  image {run.image}")
    if len(run.jobs) == 1:
        return submit.wait(run.jobs[0], as_json=arguments.json)
    return show(run, run.jobs, as_json=arguments.json)


def _prune(arguments: argparse.Namespace) -> int:
    from clustrix_containers.runs.explain import size

    age = parse_duration(arguments.older_than)
    before = time.time() - age
    book = open_record()
    listed = book.runs()
    seen = query_states(listed, QUERY_TIMEOUT)
    live = {run.id for run in listed if seen[run.id].live or _is_being_submitted(run)}
    old = [run for run in listed if run.created < before and run.id not in live]
    for run in old:
        output.note(f"{'would remove' if arguments.dry_run else 'removing'} {run.id}")
        if not arguments.dry_run:
            shutil.rmtree(book.run_directory(run.id), ignore_errors=True)
            book.remove(run.id)
    if not arguments.dry_run:
        kept = {run.image for run in book.runs()}
        freed = staging.layout().prune(keep=kept, grace=max(age, 3600.0))
        if not live:
            resolve(Options()).cluster.prune_cache(max(age, 3600.0))
        output.note(f"{len(old)} runs removed, {size(freed)} of images freed")
    return 0


def _is_being_submitted(run: Run) -> bool:
    """Whether its client may be submitting it at this moment."""
    return not run.submitted and time.time() - run.created < 3600
