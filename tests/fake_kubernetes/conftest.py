"""A fake cluster for each test or for a module, and beside it, where asked for, the real one."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.kubernetes.access import SECRET, Access
from tests.fake_kubernetes import FakeCluster, client
from tests.fake_kubernetes.client import IMAGE, Client


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return client.busybox_root(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def shared_cluster(
    tmp_path_factory: pytest.TempPathFactory, busybox_root: Path
) -> Iterator[FakeCluster]:
    """For tests that do not disturb each other."""
    directory = tmp_path_factory.mktemp("kubernetes ' ü")
    with FakeCluster(directory, client.pull_busybox(busybox_root)) as cluster:
        yield cluster


@pytest.fixture
def cluster(tmp_path: Path, busybox_root: Path) -> Iterator[FakeCluster]:
    """One of this test's own, to do things to."""
    with FakeCluster(tmp_path / "cluster", client.pull_busybox(busybox_root)) as cluster:
        yield cluster


@pytest.fixture
def fake(cluster: FakeCluster) -> Iterator[Client]:
    """A client of :func:`cluster`."""
    yield from client.connected(cluster)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kubernetes)])
def either(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the fake cluster, and of the real one."""
    if request.param == "real":
        access: Access = request.getfixturevalue("kubernetes")
        image = request.getfixturevalue("real_busybox")
        namespace = request.getfixturevalue("namespace")
        needs = {"imagePullSecrets": [{"name": SECRET}]}
        yield from client.opened(access.kubeconfig, namespace, image, needs)
    else:
        cluster: FakeCluster = request.getfixturevalue("shared_cluster")
        namespace = f"test-{secrets.token_hex(4)}"
        cluster.make_namespace(namespace)
        yield from client.opened(cluster.kubeconfig(), namespace, IMAGE, {})


@pytest.fixture(scope="session")
def real_busybox(kubernetes: Access) -> str:
    """The same image in the real cluster's registry."""
    from tests.samples import image, layer

    program = shutil.which("busybox")
    assert program
    made = image(layer({"busybox": Path(program).read_bytes()}, mode=0o755))
    return kubernetes.push("compared/busybox", made)
