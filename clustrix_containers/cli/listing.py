"""ps, prune: the commands that list this user's runs.

Their states come from one query for each target, all targets at the same time, with a deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clustrix_containers.api.options import Options
from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.api.status import State
from clustrix_containers.clusters import Cluster, staging
from clustrix_containers.errors import ClusterError, Error
from clustrix_containers.runs.attach import target_of
from clustrix_containers.runs.destination import open_target, resolve
from clustrix_containers.runs.record import Run, Seen, open_record
from clustrix_containers.runs.record.handles import unpack

from . import output

QUERY_TIMEOUT = 5.0
"""Seconds to wait for targets that do not respond."""

UNCHANGED = 60.0
"""Seconds for which states that did not change are not recorded again."""


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    ps = commands.add_parser("ps", help="list the runs, newest first")
    ps.add_argument("-n", "--last", type=int, default=20, metavar="N", help="how many (default 20)")
    ps.add_argument("-a", "--all", action="store_true", help="list all of them")
    ps.add_argument("--json", action="store_true", help="print the list as JSON")
    ps.set_defaults(command=_ps)

    prune = commands.add_parser("prune", help="remove old runs, and images that no run needs")
    prune.add_argument(
        "--older-than",
        default="30d",
        metavar="TIME",
        help="the age of the runs to remove (default 30d)",
    )
    prune.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    prune.set_defaults(command=_prune)


def _ps(arguments: argparse.Namespace) -> int:
    listed = open_record().runs(limit=None if arguments.all else arguments.last)
    found = query_states(listed)
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
    last = f" ({_counts(seen)}, seen {_ago(seen.at)})" if seen.states else ""
    return f"{run.target} unreachable{last}"


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


def _prune(arguments: argparse.Namespace) -> int:
    from rich.filesize import decimal

    age = parse_duration(arguments.older_than)
    before = time.time() - age
    record = open_record()
    listed = record.runs()
    seen = query_states(listed)
    live = {run.id for run in listed if _may_be_live(run, seen[run.id])}
    old = [run for run in listed if run.created < before and run.id not in live]
    for run in old:
        output.note(f"{'would remove' if arguments.dry_run else 'removing'} {run.id}")
        if not arguments.dry_run:
            shutil.rmtree(record.run_directory(run.id), ignore_errors=True)
            record.remove(run.id)
    if not arguments.dry_run:
        kept = {run.image for run in record.runs()}
        freed = staging.layout().prune(keep=kept, grace=max(age, 3600.0))
        if not live:
            resolve(Options()).cluster.prune_cache(max(age, 3600.0))
        output.note(f"{len(old)} runs removed, {decimal(freed)} of images freed")
    return 0


def _may_be_live(run: Run, seen: RunStates) -> bool:
    """Whether any of its elements is pending or running, or its client may be submitting it now."""
    if not run.submitted:
        return time.time() - run.created < 3600
    return seen.now and not {State.PENDING, State.RUNNING}.isdisjoint(seen.states)


@dataclass(frozen=True, slots=True)
class RunStates(Seen):
    """``now``: whether they were queried now; else the run's target has not responded since then."""

    now: bool


def query_states(chosen: Sequence[Run], timeout: float = QUERY_TIMEOUT) -> dict[str, RunStates]:
    """The states of each of these runs, by its id, as far as they are known within ``timeout`` seconds.

    Never raises and never submits: a run that its target has not confirmed is not queried.
    """
    found = {run.id: _recorded(run) for run in chosen}
    queried: dict[tuple[str, str], list[Run]] = {}
    for run in chosen:
        if not found[run.id].now and run.submitted:
            queried.setdefault((run.type, json.dumps(run.target_options)), []).append(run)
    responses: dict[str, RunStates] = {}
    threads: list[threading.Thread] = []
    for group in queried.values():
        # Opening sends nothing, but may import a library slowly: that does not count as waiting.
        with contextlib.suppress(Error, OSError):
            arguments = open_target(target_of(group[0])), group, responses
            # A target that does not respond must not keep this process alive.
            threads.append(
                threading.Thread(target=_query, args=arguments, name="clustrix-query", daemon=True)
            )
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    # Later responses are ignored: what is shown was true at one time.
    for run in chosen:
        if (response := responses.get(run.id)) is not None:
            found[run.id] = response
            _record(run, response)
    return found


def _query(cluster: Cluster, group: Sequence[Run], responses: dict[str, RunStates]) -> None:
    """Query a target once for the elements of all these runs; without a response, nothing is added."""
    with contextlib.suppress(Error, OSError):
        handles = {run.id: list(unpack(run.handles, run.id).values()) for run in group}
        states = cluster.states([handle for some in handles.values() for handle in some])
        for run, some in handles.items():
            counted = Counter(states[handle].state for handle in some)
            if State.UNKNOWN not in counted:
                responses[run] = RunStates(time.time(), counted, now=True)


def _recorded(run: Run) -> RunStates:
    """What was last seen of a run; of one that is over that is so for good."""
    states = run.seen.states if run.seen else {}
    at = run.seen.at if run.seen else run.updated
    over = bool(states) and (run.state == "done" or set(states) == {State.SUCCEEDED})
    return RunStates(at, states, over and all(it.terminal for it in states))


def _record(run: Run, response: RunStates) -> None:
    before = _recorded(run)
    if before.states == response.states and response.at - before.at < UNCHANGED:
        return
    # It may have been pruned in the meantime.
    with contextlib.suppress(ClusterError):
        open_record().update(run.id, seen=Seen(response.at, response.states))
