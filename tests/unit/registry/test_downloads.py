"""Downloads that break off go on; wrong bytes are never accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.errors import DigestMismatch, ImageError, RegistryError
from clustrix_containers.oci.model import Descriptor, Image
from clustrix_containers.registry import Remote
from clustrix_containers.registry.push import Limits
from tests.faults import FaultServer, answer, cut
from tests.unit.registry.conftest import arrived

Connect = Callable[..., Remote]
CHUNKS = Limits(chunk_above=100_000, chunk=100_000)


def test_a_wrong_manifest_is_never_used(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    connect(server).push(sample, "v1")
    for reference in (sample.digest, "v1"):
        wrong = answer(200, sample.manifest + b" ", Docker_Content_Digest=sample.digest)
        server.on("GET", "/manifests/", wrong)
        with pytest.raises(DigestMismatch, match="nothing of it was used"):
            connect(server).image(reference)


def test_a_manifest_that_is_none(server: FaultServer, connect: Connect) -> None:
    for body in (b"", b"<html>", b"[]", b'{"schemaVersion": 1}', b'{"layers": []}'):
        server.on("GET", "/manifests/", answer(200, body))
        with pytest.raises(ImageError):
            connect(server).image("v1")


def test_a_wrong_blob_is_never_accepted(
    server: FaultServer, connect: Connect, large: Image, tmp_path: Path
) -> None:
    connect(server).push(large)
    blob = large.layers[0].descriptor
    there = server.blobs["team/runs", blob.digest]
    for wrong in (bytes(blob.size), there[:-1], there + b"x", b""):
        server.blobs["team/runs", blob.digest] = wrong
        with (
            connect(server).open_blob(blob) as stream,
            pytest.raises((DigestMismatch, RegistryError)),
        ):
            # Exactly as many as there should be: no read at the end gives it away.
            stream.read(blob.size)
        with pytest.raises(RegistryError):
            connect(server).fetch_blob(blob, tmp_path / "target" / "blob")
        assert not list((tmp_path / "target").iterdir())


def test_a_download_that_breaks_off_goes_on_where_it_was(
    server: FaultServer, connect: Connect, large: Image, tmp_path: Path
) -> None:
    connect(server).push(large)
    blob = large.layers[0].descriptor
    server.seen.clear()
    server.on("GET", "/blobs/", cut(after=100_000), times=8)
    connect(server).fetch_blob(blob, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == server.blobs["team/runs", blob.digest]
    assert len(server.requests("GET")) == 9
    assert server.seen[-1].headers["Range"] == "bytes=800000-"


def test_a_registry_that_knows_no_range_is_read_all_the_same(
    server: FaultServer, connect: Connect, large: Image, tmp_path: Path
) -> None:
    connect(server).push(large)
    server.ranges = False
    server.on("GET", "/blobs/", cut(after=300_000), times=1)
    blob = large.layers[0].descriptor
    connect(server).fetch_blob(blob, tmp_path / "blob")
    assert (tmp_path / "blob").stat().st_size == blob.size


def test_a_download_that_breaks_again_and_again_is_given_up(
    server: FaultServer, connect: Connect, large: Image, tmp_path: Path
) -> None:
    connect(server).push(large)
    server.on("GET", "/blobs/", cut(after=0), times=99)
    with pytest.raises(RegistryError, match="was lost"):
        connect(server).fetch_blob(large.layers[0].descriptor, tmp_path / "d" / "blob")
    assert not list((tmp_path / "d").iterdir())


def test_an_empty_blob(server: FaultServer, connect: Connect) -> None:
    blob = Descriptor("text/plain", server.add("team/runs", b""), 0)
    with connect(server).open_blob(blob) as stream:
        assert stream.read() == b""


def test_a_base_is_streamed_from_its_registry_even_over_a_broken_line(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    connect(server, "lib/base").push(large, "v1")
    base = connect(server, "lib/base").image("v1")
    with FaultServer() as other:
        server.on("GET", "/blobs/", cut(after=300_000), times=2, after=1)
        other.on("PUT", "/uploads/", cut(after=500_000), times=1)
        connect(other, peer=lambda origin: connect(server, origin.repository)).push(base)
        assert arrived(other, base)
