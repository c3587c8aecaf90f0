"""What became of an element, in a status and a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

from clustrix_containers.api.status import Cause, State, Status

from . import journal
from .plan import Plan

ENDED = Status(State.FAILED, Cause.DIED, None, "the run's supervisor was told to end (SIGTERM)")


def cancelled() -> Status:
    return Status(State.CANCELLED, message="cancelled")


def over_time(plan: Plan) -> Status:
    message = f"ended at its time limit of {plan.timeout:g} s"
    return Status(State.FAILED, Cause.TIME_LIMIT, 124, message)


def over_memory(limit: int, peak: int, code: int | None = None) -> Status:
    used = f"; it held {_size(peak)}" if peak > limit else ""
    message = f"ended because it needed more than its memory limit of {_size(limit)}{used}"
    return Status(State.FAILED, Cause.MEMORY_LIMIT, code, message)


def _size(number: int) -> str:
    if number >= 1 << 30:
        return f"{number / (1 << 30):.3g} GiB"
    return f"{number / (1 << 20):.4g} MiB"


def not_started(error: Exception) -> str:
    return f"the container cannot be started: {error}"


def explain(plan: Plan, element: int, code: int | None) -> Status:
    """The status of an element whose container ended by itself; its mark counts most."""
    mark = _mark(plan, element)
    message = str(mark.get("message", ""))
    if mark.get("outcome") == "ok":
        # Its result was complete; what came after it (an exit handler, a late kill) is no failure.
        return journal.SUCCEEDED
    if mark.get("outcome") == "timeout":
        return Status(State.FAILED, Cause.TIME_LIMIT, code, message)
    if mark.get("outcome") == "died":
        return Status(State.FAILED, Cause.DIED, code, message)
    if mark:
        lines = message.strip().splitlines() or [""]
        kind = str(mark.get("type") or "")
        return Status(State.FAILED, Cause.NONE, code, f"{kind}: {lines[0]}" if kind else lines[0])
    said = _last_line(plan.log(element))
    message = f"the container ended with exit code {code} and no completion mark"
    return Status(State.FAILED, Cause.DIED, code, f"{message}: {said}" if said else message)


def _mark(plan: Plan, element: int) -> dict[str, object]:
    """The worker's mark, for its words only: whoever takes the result verifies it."""
    path = plan.directory / "results" / f"{element}.{plan.attempt}.mark"
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    try:
        value = json.loads(os.read(file, 1 << 22))
    except (OSError, ValueError):
        return {}
    finally:
        os.close(file)
    return value if isinstance(value, dict) else {}


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:500] if lines else ""
