"""doctor: the command that checks this machine and a target."""

from __future__ import annotations

import argparse
import sys
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
    findings = [_python(), *_environment(), *_configuration_and_target(arguments.on)]
    if arguments.json:
        output.emit_json([finding._asdict() for finding in findings])
    else:
        for name, ok, message in findings:
            sys.stdout.write(f"{'ok ' if ok else 'NOT'}  {name}: {message}\n")
    return 0 if all(finding.ok for finding in findings) else 1


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 10), f"{version} in {sys.prefix}")


def _environment() -> list[Finding]:
    from clustrix_containers.packages.resolution import check_environment

    try:
        check_environment()
    except Error as error:
        return [Finding("environment", False, str(error))]
    return []


def _configuration_and_target(name: str | None) -> list[Finding]:
    try:
        loaded = config.load()
        found = [
            Finding("clustrix.yml", True, str(loaded.path or "none found; using the defaults")),
            Finding("images", True, str(staging.layout().directory)),
            Finding("runs", True, str(paths().state)),
            Finding(
                "registry", True, loaded.registry or "none; images stay in the layout directory"
            ),
        ]
    except Error as error:
        return [Finding("clustrix.yml", False, str(error))]
    try:
        target = loaded.target(name)
        cluster = open_target(target)
        check_results(target, cluster)
    except Error as error:
        return [*found, Finding("target", False, str(error))]
    checks = cluster.check()
    return [*found, *(Finding(f"{target.name}: {item}", ok, text) for item, ok, text in checks)]
