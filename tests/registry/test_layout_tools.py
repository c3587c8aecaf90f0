"""skopeo and umoci read what Layout writes, and the other way round."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.oci.model import DOCKER_MANIFEST, Image, Layer
from clustrix_containers.registry import Layout, Remote, digest_tag
from tests.clusters.registry.cluster import Service
from tests.samples import image, layer, noise, read_all, tags

pytestmark = pytest.mark.registry


def run(*command: object) -> str:
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def sample(tmp_path: Path) -> Image:
    return image(
        layer({"base": noise(50_000)}, "base", tmp_path / "cache"),
        layer({"opt/code.py": b"print()"}, "code"),
    )


@pytest.mark.parametrize("tag", ["v1", None])
def test_skopeo_copies_an_image(sample: Image, tmp_path: Path, tag: str | None) -> None:
    layout = Layout(tmp_path / "layout")
    layout.push(sample, tag)
    source = f"oci:{layout.directory}:{tag or digest_tag(sample.digest)}"
    run("skopeo", "inspect", "--raw", source)
    run("skopeo", "--insecure-policy", "copy", source, f"oci:{tmp_path / 'copy'}:mine")
    copy = Layout(tmp_path / "copy")
    assert read_all(copy, "mine").digest == sample.digest
    # What another tool wrote is a layout to write to, too.
    copy.push(sample.configure(Env=["A=1"]), "second")
    assert {"mine", "second"} <= set(tags(copy))
    run("skopeo", "inspect", "--raw", f"oci:{copy.directory}:second")


def test_umoci_lists_unpacks_and_collects(sample: Image, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.push(sample, "v1")
    assert set(run("umoci", "list", "--layout", layout.directory).split()) == set(tags(layout))
    image_argument = f"{layout.directory}:v1"
    run("umoci", "unpack", "--rootless", "--image", image_argument, tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/opt/code.py").read_bytes() == b"print()"
    run("umoci", "gc", "--layout", layout.directory)
    assert read_all(layout, "v1").digest == sample.digest


def test_what_umoci_writes_is_read(sample: Image, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.push(sample, "v1")
    image_argument = f"{layout.directory}:v1"
    run("umoci", "config", "--image", image_argument, "--tag", "v2", "--config.env", "A=1")
    changed = read_all(layout, "v2")
    assert "A=1" in changed.settings["Env"]
    assert read_all(layout, "v1").digest == sample.digest


_PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")
_FULL = """
mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c '
import sys
from collections.abc import Callable
from pathlib import Path
from clustrix_containers.errors import ImageError
from clustrix_containers.registry import Layout
from tests.samples import image, layer, noise, read_all, tags
layout = Layout(sys.argv[1])
small = image(layer({"small": b"x"}))
layout.push(small, "small")
try:
    layout.push(image(layer({"large": noise(2_000_000)})))
except ImageError as error:
    print(error)
assert not list((layout.directory / ".tmp").iterdir())
assert read_all(layout, "small").digest == small.digest
' "$1"
"""


def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [*_PRIVATE, "sh", "-c", _FULL, "sh", tmp_path, sys.executable],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stdout
    assert "prune" in done.stdout


def test_a_docker_image_that_was_built_upon_is_read_by_umoci(
    registry_open: Service,
    repository: str,
    remote: Callable[..., Remote],
    sample: Image,
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path / "layout")
    layout.push(sample, "v1")
    target = f"docker://{registry_open.address}/{repository}:v1"
    copy = ("copy", "--insecure-policy", "--dest-tls-verify=false", "--format", "v2s2")
    run("skopeo", *copy, f"oci:{layout.directory}:v1", target)
    base = remote(registry_open, repository).image("v1")
    assert base.media_type == DOCKER_MANIFEST

    def fetch(wanted: Layer) -> Path:
        return remote(registry_open, repository).fetch_blob(wanted.descriptor, tmp_path / "blob")

    derived = Layout(tmp_path / "derived")
    derived.push(base.append(layer({"more": b"1"}, "code")), "v2", fetch=fetch)
    image_argument = f"{derived.directory}:v2"
    run("umoci", "unpack", "--rootless", "--image", image_argument, tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/more").read_bytes() == b"1"
    assert (tmp_path / "bundle/rootfs/opt/code.py").exists()
