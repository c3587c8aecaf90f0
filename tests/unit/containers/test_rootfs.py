"""Images as directories: layers are unpacked once and shared by hard links."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from clustrix_containers.containers.sandbox import rootfs
from clustrix_containers.errors import Error, ImageError
from clustrix_containers.oci import model as oci
from clustrix_containers.oci.model import Descriptor, Image, Layer
from clustrix_containers.worker import contract


def layer(directory: Path, kind: str | None, files: Mapping[str, bytes]) -> Layer:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o644, 12345
            archive.addfile(info, io.BytesIO(content))
    digest = oci.sha256(data.getvalue())
    path = directory / digest.removeprefix("sha256:")
    path.write_bytes(data.getvalue())
    notes = {contract.LAYER_KIND: kind} if kind else {}
    return Layer(Descriptor(oci.LAYER_TAR, digest, len(data.getvalue()), notes), digest, path)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_a_second_image_shares_the_layers_of_the_first(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    base = layer(tmp_path, "base", {"bin/python": b"p", "lib/x": b"from the base"})
    numpy = layer(tmp_path, "wheel", {"lib/numpy": b"n", "lib/x": b"from numpy"})
    code = layer(tmp_path, "code", {"opt/clustrix/code/m.py": b"1"})
    first = rootfs.prepare(Image((base, numpy, code)), cache)
    assert tree(first.root)["lib/x"] == b"from numpy"
    assert [mount.target for mount in first.mounts] == [contract.CODE]
    more = layer(tmp_path, "packages", {"lib/more": b"m"})
    second = rootfs.prepare(Image((base, numpy, more, code)), cache)
    assert second.root != first.root
    assert second.mounts == first.mounts
    for name in ("bin/python", "lib/numpy"):
        assert (second.root / name).stat().st_ino == (first.root / name).stat().st_ino
        assert (second.root / name).stat().st_mtime == 12345


def test_a_foreign_base_is_one_unit_with_its_whiteouts(tmp_path: Path) -> None:
    lower = layer(tmp_path, None, {"a/one": b"1", "a/two": b"2"})
    upper = layer(tmp_path, None, {"a/.wh.one": b""})
    ours = layer(tmp_path, "wheel", {"a/three": b"3"})
    found = tree(rootfs.prepare(Image((lower, upper, ours)), tmp_path / "cache").root)
    assert {name for name in found if name.startswith("a/")} == {"a/two", "a/three"}


def test_a_foreign_layer_above_ours_keeps_its_order(tmp_path: Path) -> None:
    ours = layer(tmp_path, "wheel", {"a/one": b"1", "a/two": b"2"})
    above = layer(tmp_path, None, {"a/.wh.one": b""})
    found = tree(rootfs.prepare(Image((ours, above)), tmp_path / "cache").root)
    assert {name for name in found if name.startswith("a/")} == {"a/two"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_a_hostile_layer_leaves_nothing(tmp_path: Path, name: str) -> None:
    cache = tmp_path / "cache"
    image = Image((layer(tmp_path, "wheel", {name: b"x"}),))
    with pytest.raises(ImageError, match="outside"):
        rootfs.prepare(image, cache)
    left = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []


def test_a_damaged_blob_is_found(tmp_path: Path) -> None:
    made = layer(tmp_path, "wheel", {"a": b"x" * 100})
    assert isinstance(made.blob, Path)
    made.blob.write_bytes(made.blob.read_bytes().replace(b"x", b"y"))
    with pytest.raises(Error, match="has the digest"):
        rootfs.prepare(Image((made,)), tmp_path / "cache")


def test_prune_takes_what_was_not_used_lately(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    image = Image((layer(tmp_path, "wheel", {"a": b"x"}),))
    root = rootfs.prepare(image, cache).root
    rootfs.prune(cache, 3600)
    assert root.is_dir()
    rootfs.prune(cache, -1)
    assert not root.exists()
    assert rootfs.prepare(image, cache).root.is_dir()
