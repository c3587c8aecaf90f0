"""Fixtures: a small root file system, and a network to put machines in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.machines.network import Network
from tests.clusters.machines.roots import Recipe, root

SMALL = Recipe("small", "bookworm", ("iproute2", "iputils-ping", "passwd", "procps"))


@pytest.fixture(scope="session")
def machine_root() -> Path:
    """The root file system of a small Debian."""
    try:
        return root(SMALL)
    except StartError as error:
        pytest.fail(str(error))


@pytest.fixture
def machine_directory() -> Iterator[Path]:
    """A directory with a hostile name for machines; nothing is in it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="cx 'm\" ä,:"))
    yield directory
    left = list(directory.iterdir())
    assert not left
    directory.rmdir()


@pytest.fixture
def network(machine_directory: Path) -> Iterator[Network]:
    network = Network(machine_directory / "network", with_parent=True)
    network.up()
    yield network
    network.down()
