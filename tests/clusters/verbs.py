"""The four verbs of every cluster, from the shell: ``python -m tests.clusters.NAME VERB``."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.clusters.daemon import StartError


class Cluster(Protocol):
    """A real part that tests run on; its state is in a directory, so any process can use it."""

    def up(self) -> None:
        """Start it and wait until it answers; fine if it is up already."""

    def env(self) -> Mapping[str, str]:
        """What a program needs in its environment to use it."""

    def target(self) -> str:
        """Its lines for ``clustrix.yml``: what a person needs to try the product on it by hand."""

    def logs(self) -> str:
        """What its services wrote last."""

    def down(self) -> None:
        """End it, and leave nothing behind; fine if it is not up."""


def directory(name: str) -> Path:
    """Where a cluster that a person starts has its state: one per user and checkout.

    It is short whatever ``TMPDIR`` is: a socket's path has 107 bytes.
    """
    checkout = hashlib.sha256(str(Path(__file__).resolve()).encode()).hexdigest()[:8]
    return Path(f"/tmp/clustrix-{name}-{os.geteuid()}-{checkout}")


def main(cluster: Cluster, arguments: Sequence[str] | None = None) -> None:
    """``up`` and ``env`` print lines for ``eval``; ``logs`` prints logs; ``down`` nothing.

    The lines for ``clustrix.yml`` stand among them as comments. A cluster that cannot start is
    one message with its services' logs, and exit code 1.
    """
    parser = argparse.ArgumentParser(description=type(cluster).__doc__)
    parser.add_argument("verb", choices=["up", "env", "logs", "down"])
    verb = parser.parse_args(arguments).verb
    try:
        _act(cluster, verb)
    except StartError as error:
        sys.exit(str(error))


def _act(cluster: Cluster, verb: str) -> None:
    if verb == "up":
        cluster.up()
    if verb in ("up", "env"):
        for name, value in cluster.env().items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        sys.stdout.write("# for clustrix.yml:\n")
        for line in cluster.target().splitlines():
            sys.stdout.write(f"# {line}\n")
    elif verb == "logs":
        sys.stdout.write(cluster.logs() + "\n")
    else:
        cluster.down()
