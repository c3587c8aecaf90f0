"""A registry that goes wrong on demand, and a Remote that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote, digest_tag
from clustrix_containers.remote.retry import Retry
from tests.faults import FaultServer
from tests.samples import image, layer, noise

FAST = Retry(attempts=4, first=0.001, longest=0.005, patience=2.0)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., Remote]:
    """``connect(server, repository="team/runs", …)``: a Remote without credentials."""

    def make(server: FaultServer, repository: str = "team/runs", **options: object) -> Remote:
        settings: dict[str, object] = {
            "credentials": lambda *_asked: None,
            "cache": tmp_path / "presence",
            "retry": FAST,
            **options,
        }
        return Remote(f"{server.address}/{repository}", **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def sample() -> Image:
    return image(layer({"code": b"print()"}, "code"))


@pytest.fixture
def large(tmp_path: Path) -> Image:
    return image(layer({"data": noise(1_000_000)}, "code", tmp_path / "cache"))


def arrived(server: FaultServer, it: Image, repository: str = "team/runs") -> bool:
    """Whether the server holds the image, every byte as it was."""
    blobs = [it.config_descriptor, *(part.descriptor for part in it.layers)]
    _, manifest = server.manifests.get((repository, digest_tag(it.digest)), ("", b""))
    # The server took no blob of another digest, so being there is being right.
    return manifest == it.manifest and all((repository, b.digest) in server.blobs for b in blobs)
