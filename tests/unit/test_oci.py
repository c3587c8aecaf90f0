"""References as docker reads them; images as values whose digest is their identity."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    LAYER_GZIP,
    MANIFEST,
    Descriptor,
    Image,
    Platform,
    Reference,
    canonical,
    check_digest,
    sha256,
)
from tests.samples import image, layer

DIGEST = "sha256:" + "0123456789abcdef" * 4

components = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
hosts = st.sampled_from(
    [
        "localhost",
        "localhost:5000",
        "r.example.org",
        "r.example.org:443",
        "127.0.0.1:1",
        "[::1]:5000",
    ]
)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
digests = st.binary(max_size=8).map(sha256)


@given(hosts, repositories, st.none() | tags, st.none() | digests)
def test_a_reference_is_read_as_it_is_written(
    host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    reference = Reference(host, repository, tag, digest)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python", Reference("docker.io", "library/python")),
        ("python:3.12-slim", Reference("docker.io", "library/python", "3.12-slim")),
        ("someone/thing", Reference("docker.io", "someone/thing")),
        ("docker.io/python", Reference("docker.io", "library/python")),
        ("index.docker.io/python:3", Reference("docker.io", "library/python", "3")),
        ("localhost/x", Reference("localhost", "x")),
        ("localhost:5000/x", Reference("localhost:5000", "x")),
        ("a:5000/b", Reference("a:5000", "b")),
        ("host.example/a/b/c:t", Reference("host.example", "a/b/c", "t")),
        (f"ghcr.io/a/b@{DIGEST}", Reference("ghcr.io", "a/b", None, DIGEST)),
        (f"ghcr.io/a/b:t@{DIGEST}", Reference("ghcr.io", "a/b", "t", DIGEST)),
    ],
)
def test_references_mean_what_docker_means(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "/",
        "a//b",
        "/a",
        "a/",
        "Upper",
        "r.example.org/Upper",
        "a b",
        "a:",
        "a:b c",
        "a:" + "t" * 129,
        "a@sha256:abc",
        f"a@{DIGEST}\n",
        "a@md5:" + "0" * 32,
        "a\n",
        "r.example.org:x/a",
        "r.example.org:123456/a",
        "https://r.example.org/a",
        "-a",
        "a_-b",
        "r.example.org/../a",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        Reference.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_an_image_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ImageError:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("digest", ["", "sha256:", DIGEST + "\n", DIGEST.upper(), DIGEST + "0"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ImageError):
        check_digest(digest)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_canonical_json_has_one_spelling(value: object) -> None:
    once = canonical(value)
    assert canonical(json.loads(once)) == once
    assert json.loads(once) == value


def test_the_digest_is_the_same_in_every_process() -> None:
    program = (
        "from tests.samples import image, layer;"
        "print(image(layer({'a': b'1'}, 'code')).configure(Env=['B=ü'], Labels={'x': '1'}).digest)"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p) or "."},
        ).stdout
        for seed in ("1", "2")
    }
    here = image(layer({"a": b"1"}, "code")).configure(Labels={"x": "1"}, Env=["B=ü"])
    assert answers == {here.digest + "\n"}


def test_append_and_configure_give_new_images() -> None:
    base = image(layer({"a": b"1"}))
    before = base.digest
    more = base.append(layer({"b": b"2"}))
    assert base.digest == before
    assert [it.digest for it in more.layers[:1]] == [it.digest for it in base.layers]
    assert len({base.digest, more.digest, base.configure(Env=["A=1"]).digest}) == 3
    assert base.append() == base
    config = json.loads(more.config)
    assert config["rootfs"]["diff_ids"] == [it.diff_id for it in more.layers]
    assert more.configure(Env=["A=1"]).settings == {**base.settings, "Env": ["A=1"]}


def test_an_image_that_was_read_keeps_its_bytes_until_it_is_changed() -> None:
    config = (
        b'{ "os": "linux", "architecture": "arm64", "variant": "v8", "created": "2020-01-01T00:00:00Z",'
        b' "config": {"Env": ["A=1"]}, "rootfs": {"type": "layers", "diff_ids": ["%s"]},'
        b' "history": [{"created_by": "empty", "empty_layer": true}, {"created_by": "RUN x"}] }'
    ) % DIGEST.encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": Descriptor("c", sha256(config), len(config)).to_json(),
            "layers": [
                {"mediaType": DOCKER_LAYER, "digest": DIGEST, "size": 7, "annotations": {"k": "v"}}
            ],
        },
        indent=3,
    ).encode()
    origin = Reference("r.example.org", "base")

    it = Image.read(manifest, config, origin=origin)

    assert (it.manifest, it.config, it.media_type) == (manifest, config, DOCKER_MANIFEST)
    assert it.platform == Platform("linux", "arm64", "v8")
    assert it.layers[0].origin == origin
    assert it.layers[0].blob is None
    assert it.layers[0].created_by == "RUN x"
    assert it.layers[0].descriptor.annotations == {"k": "v"}
    assert it.size == 7
    assert it.layers[0].descriptor.media_type == DOCKER_LAYER
    changed = it.configure(Cmd=["/bin/true"])
    assert changed.media_type == MANIFEST
    assert changed.layers[0].descriptor.media_type == LAYER_GZIP
    assert changed.platform == it.platform
    assert changed.settings == {"Env": ["A=1"], "Cmd": ["/bin/true"]}


@given(st.lists(st.binary(max_size=5), max_size=4), st.dictionaries(st.text(), st.text()))
def test_what_is_read_back_is_the_same_image(contents: list[bytes], labels: dict[str, str]) -> None:
    it = image(*(layer({"f": content}) for content in contents)).configure(Labels=labels)
    back = Image.read(it.manifest, it.config)
    assert back.digest == it.digest
    assert replace(back, raw_config=None, raw_manifest=None).digest == it.digest


@pytest.mark.parametrize(
    ("manifest", "config"),
    [
        (b"", b"{}"),
        (b"{}", b"{}"),
        (b"[]", b"[]"),
        (b'{"layers": []}', b'{"rootfs": null}'),
        (b'{"layers": []}', b'{"rootfs": {"diff_ids": ["%s"]}}' % DIGEST.encode()),
        (b'{"layers": []}', b'{"rootfs": {"diff_ids": [5]}}'),
        (b'{"layers": [{}]}', b'{"rootfs": {"diff_ids": ["%s"]}}' % DIGEST.encode()),
    ],
)
def test_what_is_no_image_is_one_error(manifest: bytes, config: bytes) -> None:
    with pytest.raises(ImageError):
        Image.read(manifest, config)


def test_an_image_survives_pickling() -> None:
    it = image(layer({"a": b"1"}))
    assert pickle.loads(pickle.dumps(it)) == it
