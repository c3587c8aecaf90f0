"""How elements ended, as statuses; and what remains to be done after a supervisor was killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.storage import untrusted

from . import journal
from .attempt import LABEL_ATTEMPT, AttemptSpec

CANCELLED = Status(State.CANCELLED, message="cancelled")
TERMINATED = Status(State.FAILED, Cause.DIED, None, "the run's supervisor received SIGTERM")
LAST_LINE = 500
"""Characters of an element's last line of output that its status carries."""


def over_memory(limit: int, peak: int, code: int | None = None) -> Status:
    used = f"; it used {_size(peak)}" if peak > limit else ""
    message = f"ended because it used more than its memory limit of {_size(limit)}{used}"
    return Status(State.FAILED, Cause.MEMORY_LIMIT, code, message)


def _size(number: int) -> str:
    if number >= 1 << 30:
        return f"{number / (1 << 30):.3g} GiB"
    return f"{number / (1 << 20):.4g} MiB"


def status_of(spec: AttemptSpec, element: int, code: int | None) -> Status:
    """The status of an element whose container ended by itself; its mark counts most."""
    mark = _mark(spec.mark(element))
    outcome, message = mark.get("outcome"), str(mark.get("message", ""))
    if outcome == "ok":
        # Its result was complete; what came later (an exit handler, a late kill) is no failure.
        return journal.SUCCEEDED
    if outcome == "timeout":
        return Status(State.FAILED, Cause.TIME_LIMIT, code, message)
    if outcome == "died":
        return Status(State.FAILED, Cause.DIED, code, message)
    if mark:
        words = (str(mark.get("type") or ""), message.strip().partition("\n")[0])
        return Status(State.FAILED, Cause.NONE, code, ": ".join(filter(None, words)))
    message = f"the container ended with exit code {code} and no completion mark"
    last = _last_line(spec.log(element))
    return Status(State.FAILED, Cause.DIED, code, f"{message}: {last}" if last else message)


def _mark(path: Path) -> dict[str, object]:
    """The worker's mark, only for its message: whoever takes the result verifies it."""
    try:
        value = json.loads(untrusted.read(path, 4 << 20))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:LAST_LINE] if lines else ""


# --- after a supervisor was killed --------------------------------------------------------------


def orphaned(spec: AttemptSpec, reader: journal.Reader, element: int) -> Status:
    """The status of an element whose supervisor is dead: its mark counts, if there is one."""
    running = reader.statuses.get(element) == journal.RUNNING
    if running and spec.mark(element).exists():
        return status_of(spec, element, None)
    started = reader.started or {}
    when = "while it ran" if running else "before it was started"
    return Status(
        State.FAILED,
        Cause.DIED,
        None,
        f"the run's supervisor (process {started.get('pid')} on {started.get('host')}) was killed"
        f" {when}, or the machine was restarted",
    )


def clean_up(spec: AttemptSpec) -> None:
    """Remove what the kernel does not: cgroups, an engine's containers, scratch directories."""
    from clustrix_containers.containers.sandbox import limits

    shutil.rmtree(spec.control / "scratch", ignore_errors=True)
    spec.deliver_file.unlink(missing_ok=True)
    if spec.runtime == "docker":
        from clustrix_containers.containers import docker

        with contextlib.suppress(Exception):
            docker.remove_all(LABEL_ATTEMPT, spec.tag)
    elif spec.limits != "sample" and (tree := limits.find()):
        limits.remove_all(tree, f"{spec.tag}.")
