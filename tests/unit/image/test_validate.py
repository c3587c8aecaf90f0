"""Each rule of ``validate`` fails on an image that breaks it, and only on that."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace

import pytest

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import DOCKER_LAYER, Image, Layer, canonical
from clustrix_containers.worker.contract import LAYER_KIND
from tests.validation import validate

from .making import member, tar_layer

DIR = tarfile.DIRTYPE
TOP = [member("opt/venv", type=DIR, mode=0o755)]


def ours(*members: tarfile.TarInfo) -> Image:
    layer = tar_layer((one, b"") for one in [*TOP, *members])
    noted = replace(layer.descriptor, annotations={LAYER_KIND: "wheel"})
    return Image((replace(layer, descriptor=noted),))


def test_good_images() -> None:
    validate(Image())
    validate(ours(member("opt/venv/a"), member("opt/venv/b", mode=0o755)))
    theirs = [member("z", mtime=5, uid=3, mode=0o600), member("a", uname="x")]
    validate(Image((tar_layer((one, b"") for one in theirs),)))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([member("opt/venv/b"), member("opt/venv/a")], "not in order"),
        ([member("opt/venv/a"), member("opt/venv/a")], "comes twice"),
        ([member("opt/venv/a", mtime=1)], "a time or an owner"),
        ([member("opt/venv/a", uid=1)], "a time or an owner"),
        ([member("opt/venv/a", gname="root")], "a time or an owner"),
        ([member("opt/venv/a", mode=0o600)], "the mode 600"),
        ([member("opt/venv/a", mode=0o1777)], "the mode 1777"),
        ([member("opt/venv/a/b")], "without its directory"),
        ([member("tmp", type=DIR, mode=0o755)], "outside the directories that are ours"),
        ([member("opt/venv/a", type=tarfile.FIFOTYPE)], "of the type"),
        ([member("opt/venv/../a")], "not a name"),
        ([member("opt/venv/a", pax_headers={"comment": "x"})], "pax records"),
    ],
)
def test_entries(members: list[tarfile.TarInfo], problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        validate(ours(*members))


def test_a_directory_that_becomes_a_file() -> None:
    image = ours(member("opt/venv/a", type=DIR, mode=0o755))
    with pytest.raises(ImageError, match="a directory in one layer and none in another"):
        validate(image.append(*ours(member("opt/venv/a")).layers))
    validate(image.append(*image.layers))


def broken(layer: Layer, what: str) -> Layer:
    assert isinstance(layer.blob, bytes)
    descriptor, other = layer.descriptor, tar_layer([(member("other"), b"")])
    if what == "blob":
        return replace(layer, blob=other.blob)
    if what == "size":
        return replace(layer, descriptor=replace(descriptor, size=descriptor.size + 1))
    if what == "tar":
        return replace(layer, diff_id=other.diff_id)
    if what == "type":
        return replace(layer, descriptor=replace(descriptor, media_type=DOCKER_LAYER))
    return replace(layer, blob=layer.blob[:20])


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("blob", "its blob is"),
        ("size", "bytes, not"),
        ("tar", "its tar is"),
        ("type", "is of the type"),
        ("cut", "cannot be read"),
    ],
)
def test_blobs(what: str, problem: str) -> None:
    image = ours()
    with pytest.raises(ImageError, match=problem) as caught:
        validate(Image((broken(image.layers[0], what),)))
    assert caught.value.problems


def test_blobs_that_are_elsewhere() -> None:
    (layer,) = ours().layers
    away = Image((replace(layer, blob=None),))
    validate(away)
    blob = layer.blob
    assert isinstance(blob, bytes)
    validate(away, lambda _: io.BytesIO(blob))
    with pytest.raises(ImageError, match="its blob is"):
        validate(away, lambda _: io.BytesIO(gzip.compress(gzip.decompress(blob), 9)))


def test_documents() -> None:
    image = ours()
    manifest, config = image.manifest, image.config
    validate(replace(image, raw_manifest=manifest, raw_config=config))
    for problem, broken_image in {
        "names another config": replace(image, raw_manifest=manifest, raw_config=config + b" "),
        "other layers": replace(image, layers=(), raw_manifest=manifest, raw_config=config),
        "other diff_ids": replace(
            image,
            raw_config=config.replace(image.layers[0].diff_id.encode(), b"sha256:" + b"0" * 64),
        ),
        "history": replace(image, raw_config=config.replace(b'"history":[', b'"history":[{},')),
        "set twice": image.configure(Env=["A=1", "A=2"]),
        "unknown type": replace(
            image, raw_manifest=manifest.replace(b"image.manifest", b"image.nothing")
        ),
    }.items():
        with pytest.raises(ImageError, match=problem):
            validate(broken_image)
    assert canonical({"b": 1, "a": 2}) == b'{"a":2,"b":1}'
