"""Fixtures: a Kubernetes for the tests of one worker process, and a namespace for one test."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.kubernetes.cluster import Kubernetes


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Kubernetes]:
    """An API server, two nodes and a registry. They start in 10 s: each worker has its own."""
    cluster = Kubernetes(Path(tempfile.mkdtemp(prefix="cx kubernetes ' ")), with_parent=True)
    try:
        cluster.up()
    except StartError as error:
        text = f"{error}\n{cluster.logs()}"
        cluster.down()
        pytest.fail(text)
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def namespace(kubernetes: Kubernetes) -> Iterator[str]:
    """A namespace of this test's own, with the pull secret in it."""
    name = f"test-{secrets.token_hex(4)}"
    kubernetes.make_namespace(name)
    yield name
    kubernetes.kubectl("delete", "namespace", name, "--wait=false", check=False)
