"""A machine whose connections to one address are refused, on demand."""

from __future__ import annotations

import subprocess

from tests.clusters.daemon import StartError
from tests.clusters.machines.machine import Machine

_TABLE = "table inet refusing"


def refuse(machine: Machine, address: str) -> None:
    """From now on ``address`` (``IP:PORT``) refuses connections from the machine itself.

    They are reset, as where nothing listens. Those of its pods are not.
    """
    host, _, port = address.partition(":")
    _filter(
        machine,
        f"{_TABLE}\ndelete {_TABLE}\n{_TABLE} {{\nchain output {{\n"
        "type filter hook output priority 0\n"
        f"ip daddr {host} tcp dport {port} reject with tcp reset\n}}\n}}\n",
    )


def accept(machine: Machine) -> None:
    """Refuse nothing any more; fine if nothing is."""
    _filter(machine, f"{_TABLE}\ndelete {_TABLE}\n")


def _filter(machine: Machine, rules: str) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{machine.pid}/ns/net", "--", "nft", "-f", "-"],
        input=rules,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        raise StartError(f"{machine.name}: nft: {done.stderr}")
