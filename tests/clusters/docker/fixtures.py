"""Fixtures: a Docker engine for the tests of one worker process, and a small image in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.docker.engine import GIVEN, Engine, answers, given_host, import_busybox

BUSYBOX = "clustrix-test/busybox:1"


def pytest_configure(config: pytest.Config) -> None:
    # testcontainers reads these once, when it is imported. Its reaper is an image to pull, and
    # an engine without a bridge network has no gateway to connect to.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A run with a given engine starts none, and may have no right to.
    if given_host() is None:
        return
    own = [item for item in items if "own_engine" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in own]
    config.hook.pytest_deselected(items=own)


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """The address of an engine: the one that the environment names, else one of our own.

    One of our own takes 0.3 s to start, so each worker process has its own, and no test
    sees the images and containers of another process.
    """
    host = given_host()
    if host is not None:
        if not answers(host):
            pytest.fail(f"no Docker engine answers at {host} ({GIVEN} or DOCKER_HOST)")
        yield host
        return
    engine = _new_engine()
    try:
        engine.up()
        yield engine.host
    finally:
        engine.down()


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    """An engine that is not started yet, for tests of how one starts and ends."""
    engine = _new_engine()
    yield engine
    engine.down()


def _new_engine() -> Engine:
    # Not the tests' own temporary folder: a socket's path has 107 bytes.
    return Engine(Path(tempfile.mkdtemp(prefix="cxd-", dir="/tmp")), with_parent=True)


@pytest.fixture(scope="session")
def busybox_image(docker_host: str) -> str:
    """The name of an image in the engine that holds a static busybox and nothing else."""
    import_busybox(docker_host, BUSYBOX)
    return BUSYBOX
