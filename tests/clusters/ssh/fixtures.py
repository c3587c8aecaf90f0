"""Fixtures: hosts that are reached by SSH, each worker's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.ssh.cluster import VARIANTS, Host


@pytest.fixture(scope="session")
def ssh_hosts() -> Iterator[Callable[[str], Host]]:
    """The host of a variant by its name, which starts in about a second when it is wanted."""
    hosts: dict[str, Host] = {}

    def host(variant: str) -> Host:
        if variant not in hosts:
            # Whatever TMPDIR is: ProxyJump cannot quote a space, and a socket's path is short.
            directory = Path(tempfile.mkdtemp(prefix="cx-ssh-", dir="/tmp"))
            hosts[variant] = Host(directory, VARIANTS[variant], with_parent=True)
        try:
            hosts[variant].up()
        except StartError as error:
            pytest.fail(f"{error}\n{hosts[variant].logs()}")
        return hosts[variant]

    yield host
    for started in hosts.values():
        started.down()


@pytest.fixture
def ssh_host(ssh_hosts: Callable[[str], Host]) -> Host:
    """A host that is reached with a key, with nothing in the way."""
    return ssh_hosts("plain")
