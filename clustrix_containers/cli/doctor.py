"""doctor: the command that checks this machine and a target."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from clustrix_containers.clusters import staging
from clustrix_containers.config import file as config
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import Error
from clustrix_containers.runs.destination import check_results, open_target

from . import output


class Finding(NamedTuple):
    """The result of one check: whether it passed, and a sentence about it."""

    name: str
    ok: bool
    message: str


def add(commands: Any) -> None:
    """Add this command to the parser."""
    doctor = commands.add_parser("doctor", help="check this machine and a target")
    doctor.add_argument(
        "--on", metavar="TARGET", help="a target of clustrix.yml (default: its default)"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    findings = list(_findings(arguments.on))
    if arguments.json:
        output.emit_json([finding._asdict() for finding in findings])
    else:
        for name, ok, message in findings:
            sys.stdout.write(f"{'ok ' if ok else 'NOT'}  {name}: {message}\n")
    return 0 if all(finding.ok for finding in findings) else 1


def _findings(name: str | None) -> Iterator[Finding]:
    """Each check of this machine, and of the target ``name``, as far as there is one."""
    from clustrix_containers.packages.resolution import check_environment

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 10), f"{version} in {sys.prefix}")
    try:
        check_environment()
    except Error as error:
        yield Finding("environment", False, str(error))
    step = "clustrix.yml"
    try:
        loaded = config.load()
        yield Finding(step, True, str(loaded.path or "none found; using the defaults"))
        yield Finding("images", True, str(staging.layout().directory))
        yield Finding("runs", True, str(paths().state))
        registry = loaded.registry or "none; images stay in the layout directory"
        yield Finding("registry", True, registry)
        step = "target"
        target = loaded.target(name)
        cluster = open_target(target)
        check_results(target, cluster)
    except Error as error:
        yield Finding(step, False, str(error))
        return
    for check, ok, message in cluster.check():
        yield Finding(f"{target.name}: {check}", ok, message)
