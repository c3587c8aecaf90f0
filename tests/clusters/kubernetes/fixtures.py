"""Fixtures: a Kubernetes for the tests of one worker process, and a namespace for one test."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes.access import GIVEN, Access, given
from tests.clusters.kubernetes.cluster import Kubernetes, prepare
from tests.clusters.kubernetes.lock import if_unlocked, locked

_FAILED = pytest.StashKey[str]()
_PREFIX = "cx own k8s ' "


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What damages a cluster, or looks into it, needs one of our own.
    if not os.environ.get(GIVEN):
        return
    own = [item for item in items if "own_kubernetes" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in own]
    config.hook.pytest_deselected(items=own)


def pytest_collection_finish(session: pytest.Session) -> None:
    # The first time this takes longer than any test may.
    config = session.config
    if os.environ.get(GIVEN) or config.getoption("collectonly"):
        return
    if any(item.get_closest_marker("kubernetes") for item in session.items):
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            try:
                prepare()
            except StartError as error:
                config.stash[_FAILED] = str(error)


@pytest.fixture(scope="session")
def kubernetes(request: pytest.FixtureRequest) -> Access:
    """A Kubernetes: the one that the environment names, else one of our own.

    One of our own takes 10 s to start: each worker process has its own. It has an API server,
    two nodes and a registry.
    """
    try:
        access = given()
    except StartError as error:
        pytest.fail(str(error))
    if access is None:
        own: Kubernetes = request.getfixturevalue("_own_kubernetes")
        return own.access
    if not wait_until(access.answers, 30):
        pytest.fail(f"no Kubernetes answers to {access.kubeconfig} ({GIVEN})")
    return access


@pytest.fixture(scope="session")
def _own_kubernetes(request: pytest.FixtureRequest) -> Iterator[Kubernetes]:
    if _FAILED in request.config.stash:
        pytest.fail(request.config.stash[_FAILED])
    _clean()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with locked(directory):
        cluster = Kubernetes(directory / "cluster", with_parent=True)
        try:
            try:
                cluster.up()
            except (StartError, subprocess.TimeoutExpired) as error:
                pytest.fail(f"{error}\n{cluster.logs()}")
            yield cluster
        finally:
            cluster.down()
            directory.rmdir()


def _clean() -> None:
    """Remove what is left of the clusters of test runs that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with if_unlocked(directory) as left, contextlib.suppress(StartError):
            if left:
                Kubernetes(directory / "cluster").down()
                directory.rmdir()


@pytest.fixture
def namespace(kubernetes: Access) -> Iterator[str]:
    """A namespace of this test's own, with the pull secret :data:`SECRET` in it."""
    name = f"test-{secrets.token_hex(4)}"
    kubernetes.make_namespace(name)
    yield name
    kubernetes.delete_namespace(name)


@pytest.fixture
def own_kubernetes(_own_kubernetes: Kubernetes, namespace: str) -> Iterator[Kubernetes]:
    """The cluster of :func:`kubernetes`, which a test may damage: it is put right afterwards.

    After that, too, the test's namespace can be deleted: it is made first.
    """
    yield _own_kubernetes
    _own_kubernetes.up()
