"""Fixtures: the registries for the tests of one worker process, each on a port of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.registry.cluster import Registries, Service


@pytest.fixture(scope="session")
def registry() -> Iterator[Registries]:
    """The three registries. They start in well under a second, so each worker has its own."""
    registries = Registries(Path(tempfile.mkdtemp(prefix="cx registry ' ")), with_parent=True)
    try:
        registries.up()
    except StartError as error:
        registries.down()
        pytest.fail(str(error))
    try:
        yield registries
    finally:
        registries.down()


@pytest.fixture(scope="session")
def registry_open(registry: Registries) -> Service:
    """A registry over plain http that asks for nothing."""
    return registry.open


@pytest.fixture(scope="session")
def registry_tls(registry: Registries) -> Service:
    """A registry with a certificate of its own authority, and a password file."""
    return registry.tls


@pytest.fixture(scope="session")
def registry_token(registry: Registries) -> Service:
    """A registry that wants bearer tokens; anybody may pull."""
    return registry.token
