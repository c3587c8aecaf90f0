from __future__ import annotations

import gc
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.errors import ImageError
from clustrix_containers.image.base import LABEL_GLIBC, LABEL_INTERPRETER
from clustrix_containers.image.base.dockerfile import from_dockerfile
from clustrix_containers.image.build import build
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.worker.contract import LABEL_PYTHON
from tests.validation import validate

from .making import MINOR, bundle, lock


@pytest.fixture
def engine(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import docker

    monkeypatch.setenv("DOCKER_HOST", docker_host)
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def imported(engine: Any, base: Image, tmp_path: Path) -> str:
    """The packed interpreter as an image of the engine, to begin a Dockerfile with."""
    for layer in base.layers:
        unpack(layer, tmp_path / "root")
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "root", ".")
    engine.api.import_image_from_file(str(archive), repository="clustrix-test-base", tag="1")
    return "clustrix-test-base:1"


@pytest.mark.docker
def test_a_dockerfile_as_a_base(imported: str, tmp_path: Path, cache: Path) -> None:
    context = tmp_path / "a context"
    context.mkdir()
    (context / "hello").write_text("hello")
    dockerfile = context / "Dockerfile.base"
    dockerfile.write_text(
        f"FROM {imported}\nENV PATH=/opt/python/bin:/usr/bin GREETING=hello\nCOPY hello /etc/hello\n"
    )
    base = from_dockerfile(dockerfile, cache)
    validate(base)
    labels = base.settings["Labels"]
    assert labels[LABEL_INTERPRETER] == f"/opt/python/bin/python{MINOR}"
    assert labels[LABEL_PYTHON].startswith(MINOR + ".")
    assert labels[LABEL_GLIBC]
    assert "GREETING=hello" in base.settings["Env"]
    unpack(base.layers[-1], tmp_path / "last")
    assert (tmp_path / "last/etc/hello").read_text() == "hello"
    assert from_dockerfile(dockerfile, cache) == base, "the same, from the cache"
    validate(build(bundle(), lock(), base, cache=cache))
    assert not list((cache / "tmp").iterdir())


@pytest.mark.docker
def test_dockerfiles_that_cannot_be_used(imported: str, tmp_path: Path, cache: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {imported}\nCOPY nothing /\n")
    with pytest.raises(ImageError, match="Dockerfile could not be built"):
        from_dockerfile(dockerfile, cache)
    dockerfile.write_text("FROM scratch\nCOPY Dockerfile /\n")
    with pytest.raises(ImageError, match="has no Python"):
        from_dockerfile(dockerfile, cache)


# The SDK forgets to close the socket that could not connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_no_engine(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(ImageError, match="cannot reach a Docker engine") as caught:
        from_dockerfile(tmp_path / "Dockerfile", cache)
    assert "DOCKER_HOST" in str(caught.value)
    del caught
    gc.collect()
