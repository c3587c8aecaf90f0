"""What is to be said, and removed, when a supervisor has been killed."""

from __future__ import annotations

import contextlib
import shutil

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.containers import cgroup

from . import journal
from .outcome import explain
from .plan import Plan


def orphaned(reader: journal.Reader, element: int, last: Status) -> Status:
    """The status of an element whose supervisor is gone: its mark counts, if it left one."""
    plan = Plan.from_json((reader.control / "plan.json").read_bytes())
    mark = plan.directory / "results" / f"{element}.{plan.attempt}.mark"
    if last.state is State.RUNNING and mark.exists():
        return explain(plan, element, None)
    started = reader.started or {}
    when = "while it ran" if last.state is State.RUNNING else "before it was started"
    return Status(
        State.FAILED,
        Cause.DIED,
        None,
        f"the run's supervisor (process {started.get('pid')} on {started.get('host')}) was ended"
        f" from outside {when}, or the machine was restarted",
    )


def clean_up(reader: journal.Reader) -> None:
    """Remove what the kernel has not: cgroups, an engine's containers, working directories."""
    plan = Plan.from_json((reader.control / "plan.json").read_bytes())
    shutil.rmtree(reader.control / "work", ignore_errors=True)
    if plan.runtime == "docker":
        from clustrix_containers.containers import docker

        with contextlib.suppress(Exception):
            docker.sweep(plan)
    elif plan.limits != "sample" and (tree := cgroup.find()):
        cgroup.sweep(tree, f"{plan.tag}.")
