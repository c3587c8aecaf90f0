from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.image.base.interpreter import packed
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.unpack import unpack


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache with a space é"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One cache for all that pack the interpreter; also a try of many processes at once."""
    top = tmp_path_factory.getbasetemp()
    return (top if worker_id == "master" else top.parent) / "packed"


@pytest.fixture(scope="session")
def base(shared_cache: Path) -> Image:
    return packed(shared_cache)


@pytest.fixture
def run_in(tmp_path: Path) -> Callable[..., str]:
    """Unpack an image and run a command in it, in a user namespace, with its own environment."""

    def run(image: Image, *command: str) -> str:
        root = tmp_path / image.digest[-12:]
        if not root.exists():
            for layer in image.layers:
                unpack(layer, root)
        env = dict(item.split("=", 1) for item in image.settings["Env"])
        enter = ["unshare", "--user", "--map-root-user", f"--root={root}", "--wd=/"]
        done = subprocess.run([*enter, *command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
