"""How runs are, asked of each target once, of all targets at the same time, and only for so long."""

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

KEPT = 60.0
"""Seconds for which what was seen is not written down again while it stays the same."""


@dataclass(frozen=True, slots=True)
class View:
    """How many elements of a run are in which state, ``at`` a time (seconds since the epoch).

    ``now``: whether that is so now; else the run's target has not answered since.
    """

    states: Mapping[State, int]
    at: float
    now: bool

    @property
    def live(self) -> bool:
        """Whether, as far as is known now, anything of it waits or runs."""
        return self.now and any(it in self.states for it in (State.PENDING, State.RUNNING))


def survey(chosen: Sequence[Run], patience: float) -> dict[str, View]:
    """How each of these runs is, by its id, as far as that is known within ``patience`` seconds.

    Raises nothing, and submits nothing: a run that its target has never confirmed is not asked for.
    """
    found = {run.id: _remembered(run) for run in chosen}
    asked: dict[tuple[str, str], list[Run]] = {}
    for run in chosen:
        if not found[run.id].now and run.submitted:
            asked.setdefault((run.type, json.dumps(run.target_options)), []).append(run)
    answers: dict[str, View] = {}
    threads = [
        # One that gets no answer must not keep this process from ending.
        threading.Thread(target=_ask, args=(group, answers), name="clustrix-survey", daemon=True)
        for group in asked.values()
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    # What comes later is not looked at: what is shown was so at one time.
    for run in chosen:
        if (answer := answers.get(run.id)) is not None:
            found[run.id] = answer
            _remember(run, answer)
    return found


def _ask(group: Sequence[Run], answers: dict[str, View]) -> None:
    """Ask a target for the elements of all these runs at once; silent if it does not know."""
    first = group[0]
    with contextlib.suppress(Error, OSError):
        cluster = open_target(target_of(first))
        handles = {run.id: list(unpack(run.handles, run.id).values()) for run in group}
        states = cluster.states([handle for some in handles.values() for handle in some])
        for run, some in handles.items():
            counted = Counter(states[handle].state for handle in some)
            if State.UNKNOWN not in counted:
                answers[run] = View(counted, time.time(), now=True)


def _remembered(run: Run) -> View:
    """What was last seen of a run; of one that is over that is so for good."""
    states = run.seen.states if run.seen else {}
    at = run.seen.at if run.seen else run.updated
    over = bool(states) and (run.state == "done" or set(states) == {State.SUCCEEDED})
    return View(states, at, over and all(it.terminal for it in states))


def _remember(run: Run, answer: View) -> None:
    before = _remembered(run)
    if before.states == answer.states and answer.at - before.at < KEPT:
        return
    # It may have been pruned meanwhile.
    with contextlib.suppress(ClusterError):
        open_record().update(run.id, seen=Seen(answer.at, answer.states))
