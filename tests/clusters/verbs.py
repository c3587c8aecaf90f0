"""The four verbs of every cluster, from the shell: ``python -m tests.clusters.NAME VERB``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol


class Cluster(Protocol):
    """A real part that tests run on; its state lies in a directory, so any process can ask."""

    def up(self) -> None:
        """Start it and wait until it answers; fine if it is up already."""

    def env(self) -> Mapping[str, str]:
        """What a program needs in its environment to use it."""

    def logs(self) -> str:
        """What its services wrote last."""

    def down(self) -> None:
        """End it, and leave nothing behind; fine if it is not up."""


def main(cluster: Cluster, arguments: Sequence[str] | None = None) -> None:
    """``up`` and ``env`` print lines for ``eval``; ``logs`` prints logs; ``down`` nothing."""
    parser = argparse.ArgumentParser(description=type(cluster).__doc__)
    parser.add_argument("verb", choices=["up", "env", "logs", "down"])
    verb = parser.parse_args(arguments).verb
    if verb == "up":
        cluster.up()
    if verb in ("up", "env"):
        for name, value in cluster.env().items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    elif verb == "logs":
        sys.stdout.write(cluster.logs() + "\n")
    else:
        cluster.down()
