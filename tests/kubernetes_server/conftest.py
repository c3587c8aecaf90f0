"""A played Kubernetes for each test or for a module, and beside it, where asked for, the real one."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.kubernetes.access import SECRET, Access
from tests.kubernetes_server import Server, parts
from tests.kubernetes_server.peers import Peer


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.busybox_root(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, busybox_root: Path) -> Iterator[Server]:
    """For tests that leave each other alone."""
    directory = tmp_path_factory.mktemp("kubernetes ' ü")
    with Server(directory, parts.pull_busybox(busybox_root)) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, busybox_root: Path) -> Iterator[Server]:
    """One of this test's own, to do things to."""
    with Server(tmp_path / "server", parts.pull_busybox(busybox_root)) as server:
        yield server


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    """A client of :func:`server`."""
    yield from connected(server, "default")


@pytest.fixture(params=["played", pytest.param("real", marks=pytest.mark.kubernetes)])
def either(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """The played cluster, and the real one: what a test says of it is true of both."""
    if request.param == "real":
        yield from _real(request.getfixturevalue("kubernetes"), request)
    else:
        server: Server = request.getfixturevalue("shared_server")
        namespace = f"test-{secrets.token_hex(4)}"
        server.make_namespace(namespace)
        yield from connected(server, namespace)


def connected(server: Server, namespace: str) -> Iterator[Peer]:
    client = _client(server.kubeconfig())
    yield Peer(client, namespace, parts.IMAGE, {})
    _close(client)


def _real(access: Access, request: pytest.FixtureRequest) -> Iterator[Peer]:
    image = request.getfixturevalue("real_busybox")
    client = _client(access.kubeconfig)
    namespace = request.getfixturevalue("namespace")
    yield Peer(client, namespace, image, {"imagePullSecrets": [{"name": SECRET}]})
    _close(client)


@pytest.fixture(scope="session")
def real_busybox(kubernetes: Access) -> str:
    """The same image in the real cluster's registry."""
    from tests.samples import image, layer

    program = shutil.which("busybox")
    assert program
    made = image(layer({"busybox": Path(program).read_bytes()}, mode=0o755))
    return kubernetes.push("compared/busybox", made)


def _client(kubeconfig: Path) -> Any:
    from kubernetes import config

    client: Any = config.new_client_from_config(str(kubeconfig))
    client.user_agent = "test"
    return client


def _close(client: Any) -> None:
    client.close()
    # Older clients leave their connections open.
    client.rest_client.pool_manager.clear()
