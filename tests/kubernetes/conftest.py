"""Tests of the Kubernetes target, on the real 1.20 and on the fake cluster, beyond the contract suite."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.clusters import staging
from tests.clusters.faults.proxy import Proxy
from tests.clusters.kubernetes.access import SECRET, Access
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.clusters.registry.cluster import Service
from tests.fake_kubernetes import FakeCluster, PullError, Unpacked, unpacked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directories: record and images are this test's, the cache is shared."""
    cache = ROOT / ".cache" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("CLUSTRIX_CACHE_DIR", str(cache))
    monkeypatch.setenv("CLUSTRIX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(tmp_path / "clustrix.yml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def configure(
    kubernetes: Access, namespace: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Write ``clustrix.yml`` with the target ``k8s``, in the test's namespace, and its options."""
    for name, value in kubernetes.variables().items():
        monkeypatch.setenv(name, value)

    def write(**options: Any) -> None:
        target = {
            "type": "kubernetes",
            "kubeconfig": str(kubernetes.kubeconfig),
            "namespace": namespace,
            "registry": f"{kubernetes.registry}/failures/runs",
            "pull_secret": SECRET,
            **options,
        }
        (home / "clustrix.yml").write_text(json.dumps({"targets": {"k8s": target}}))

    write()
    return write


@pytest.fixture
def on(configure: Callable[..., None]) -> str:
    """The name of the target, as it is without further options."""
    return "k8s"


@pytest.fixture
def proxy(
    configure: Callable[..., None], own_kubernetes: Kubernetes, home: Path
) -> Iterator[Proxy]:
    """A proxy between the target ``k8s`` and its API server; other clients connect directly."""
    configuration = own_kubernetes.configuration
    with Proxy((configuration.server, 6443)) as proxy:
        config = json.loads(own_kubernetes.access.kubeconfig.read_text())
        (cluster,) = config["clusters"]
        cluster["cluster"]["server"] = f"https://{proxy.address}"
        cluster["cluster"]["tls-server-name"] = configuration.server
        path = home / "through the proxy.kubeconfig"
        path.write_text(json.dumps(config))
        configure(kubeconfig=str(path))
        yield proxy


def receiving(run: str, home: Path) -> bool:
    """Whether some of a result has arrived; a file may be renamed at this moment."""
    results = home / "state" / "runs" / run / "results"
    try:
        return any(file.stat().st_size for file in results.iterdir())
    except FileNotFoundError:
        return False


@pytest.fixture
def configure_fake(registry_open: Service, home: Path) -> Callable[..., str]:
    """Make the namespace ``team`` of a fake cluster the target ``k8s``, and give that name."""

    def write(kubeconfig: Path, **options: Any) -> str:
        target = {
            "type": "kubernetes",
            "kubeconfig": str(kubeconfig),
            "namespace": "team",
            "registry": f"{registry_open.address}/fake/runs",
            **options,
        }
        (home / "clustrix.yml").write_text(json.dumps({"targets": {"k8s": target}}))
        return "k8s"

    return write


@pytest.fixture
def no_pulls() -> threading.Event:
    """While it is set, the fake cluster can pull no image."""
    return threading.Event()


@pytest.fixture
def fake_cluster(tmp_path: Path, home: Path, no_pulls: threading.Event) -> Iterator[FakeCluster]:
    """A fake Kubernetes that runs this user's images, with the namespace ``team``."""
    assert home

    def pull(reference: str) -> Unpacked:
        if no_pulls.is_set():
            raise PullError("pull access denied")
        image = staging.layout().image(reference.partition("@")[2])
        return unpacked(image, tmp_path / "unpacked")

    with FakeCluster(tmp_path / "cluster", pull) as cluster:
        cluster.make_namespace("team")
        yield cluster
