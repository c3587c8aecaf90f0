"""The states of runs: one query for each target, all targets at the same time, with a deadline."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clustrix_containers.api.status import State
from clustrix_containers.errors import ClusterError, Error
from clustrix_containers.runs.attach import target_of
from clustrix_containers.runs.destination import open_target
from clustrix_containers.runs.handles import unpack
from clustrix_containers.runs.record import Run, Seen, open_record

UNCHANGED = 60.0
"""Seconds for which states that did not change are not recorded again."""


@dataclass(frozen=True, slots=True)
class RunStates:
    """How many elements of a run are in which state, ``at`` a time (seconds since the epoch).

    ``now``: whether they were queried now; else the run's target has not responded since then.
    """

    states: Mapping[State, int]
    at: float
    now: bool

    @property
    def live(self) -> bool:
        """Whether any of its elements is known to be pending or running."""
        return self.now and any(it in self.states for it in (State.PENDING, State.RUNNING))


def query_states(chosen: Sequence[Run], timeout: float) -> dict[str, RunStates]:
    """The states of each of these runs, by its id, as far as they are known within ``timeout`` seconds.

    Never raises and never submits: a run that its target has not confirmed is not queried.
    """
    found = {run.id: _recorded(run) for run in chosen}
    queried: dict[tuple[str, str], list[Run]] = {}
    for run in chosen:
        if not found[run.id].now and run.submitted:
            queried.setdefault((run.type, json.dumps(run.target_options)), []).append(run)
    responses: dict[str, RunStates] = {}
    threads = [
        # A target that does not respond must not keep this process alive.
        threading.Thread(target=_query, args=(group, responses), name="clustrix-query", daemon=True)
        for group in queried.values()
    ]
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


def _query(group: Sequence[Run], responses: dict[str, RunStates]) -> None:
    """Query a target once for the elements of all these runs; without a response, nothing is added."""
    first = group[0]
    with contextlib.suppress(Error, OSError):
        cluster = open_target(target_of(first))
        handles = {run.id: list(unpack(run.handles, run.id).values()) for run in group}
        states = cluster.states([handle for some in handles.values() for handle in some])
        for run, some in handles.items():
            counted = Counter(states[handle].state for handle in some)
            if State.UNKNOWN not in counted:
                responses[run] = RunStates(counted, time.time(), now=True)


def _recorded(run: Run) -> RunStates:
    """What was last seen of a run; of one that is over that is so for good."""
    states = run.seen.states if run.seen else {}
    at = run.seen.at if run.seen else run.updated
    over = bool(states) and (run.state == "done" or set(states) == {State.SUCCEEDED})
    return RunStates(states, at, over and all(it.terminal for it in states))


def _record(run: Run, response: RunStates) -> None:
    before = _recorded(run)
    if before.states == response.states and response.at - before.at < UNCHANGED:
        return
    # It may have been pruned in the meantime.
    with contextlib.suppress(ClusterError):
        open_record().update(run.id, seen=Seen(response.at, response.states))
