"""Uploads that break off, get lost or are mounted arrive whole, or are one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.errors import DigestMismatch, RegistryError
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote
from clustrix_containers.registry.push import Limits
from tests.faults import FaultServer, Handler, answer, close, cut, error, forget, lose_answer
from tests.samples import image, layer, noise
from tests.unit.registry.conftest import arrived

Connect = Callable[..., Remote]
CHUNKS = Limits(chunk_above=100_000, chunk=100_000)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("limits", [Limits(), CHUNKS], ids=["whole", "chunks"])
def test_an_upload_arrives(
    server: FaultServer, connect: Connect, large: Image, limits: Limits, relative: bool
) -> None:
    server.relative = relative
    connect(server, limits=limits).push(large)
    assert arrived(server, large)
    assert all("_state=a%2Fb%3D%3D" in it.path for it in server.requests("PUT", "/uploads/"))


def test_an_upload_in_one_piece_that_breaks_off_goes_on_where_it_was(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.on("PUT", large.layers[0].digest.removeprefix("sha256:"), cut(after=70_000))
    connect(server).push(large)
    assert arrived(server, large)
    patched = sum(int(it.headers["Content-Length"]) for it in server.requests("PATCH"))
    assert patched == large.layers[0].size - 70_000


def test_an_upload_in_chunks_that_breaks_off_goes_on_where_it_was(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.on("PATCH", "/uploads/", cut(after=70_000), times=1, after=3)
    connect(server, limits=CHUNKS).push(large)
    assert arrived(server, large)
    assert len(server.requests("POST")) == 2
    patched = sum(int(it.headers["Content-Length"]) for it in server.requests("PATCH"))
    assert patched == large.layers[0].size + 30_000


def test_a_connection_that_breaks_again_and_again_is_given_up(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.on("PUT", "/uploads/", close(), times=99)
    server.on("PATCH", "/uploads/", close(), times=99)
    with pytest.raises(RegistryError, match="was lost"):
        connect(server).push(large)
    assert len(server.requests("PUT")) <= 8
    assert not server.manifests


def test_progress_under_faults_is_not_counted_as_failing(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    # More cuts than attempts, but each time some bytes more arrive.
    server.on("PATCH", "/uploads/", cut(after=50_000), times=12)
    connect(server, limits=CHUNKS).push(large)
    assert arrived(server, large)


def test_a_commit_whose_answer_is_lost_is_looked_up(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.on("PUT", "/uploads/", lose_answer(), times=2)
    connect(server).push(large)
    assert arrived(server, large)
    assert len(server.requests("POST")) == 2


def test_a_manifest_whose_answer_is_lost_is_put_again(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    server.on("PUT", "/manifests/", lose_answer())
    connect(server).push(sample)
    assert arrived(server, sample)


@pytest.mark.parametrize("honest", [True, False])
def test_a_registry_that_loses_chunks_gets_the_whole(
    server: FaultServer, connect: Connect, large: Image, honest: bool
) -> None:
    server.on("PATCH", "/uploads/", forget(honest), times=99, after=1)
    connect(server, limits=CHUNKS).push(large)
    assert arrived(server, large)


@pytest.mark.parametrize("status", [404, 405, 416, 501])
def test_a_registry_without_chunks_gets_the_whole(
    server: FaultServer, connect: Connect, large: Image, status: int
) -> None:
    server.on("PATCH", "/uploads/", answer(status), times=99)
    connect(server, limits=CHUNKS).push(large)
    assert arrived(server, large)


def test_a_body_too_large_for_a_proxy_goes_in_chunks(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    refused: list[int] = []

    def proxy(handler: Handler) -> bool:
        # By size: the order of uploads is not defined.
        size = int(handler.headers["Content-Length"])
        if refused or size < 100_000:
            return False
        refused.append(size)
        return answer(413)(handler)

    server.on("PUT", "/uploads/", proxy, times=99)
    connect(server).push(large)
    assert arrived(server, large)
    assert refused
    assert server.requests("PATCH")


def test_a_body_too_large_for_good_is_one_error(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.on("PUT", "/uploads/", answer(413), times=99)
    server.on("PATCH", "/uploads/", answer(413), times=99)
    with pytest.raises(RegistryError, match="413"):
        connect(server).push(large)


def test_a_session_that_is_gone_is_begun_again(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    server.on("PUT", "/uploads/", error(404, "BLOB_UPLOAD_UNKNOWN"), times=2)
    connect(server).push(sample)
    assert arrived(server, sample)


def test_the_smallest_chunk_is_the_registrys(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    server.chunk_minimum = 400_000
    connect(server, limits=CHUNKS).push(large)
    sizes = [int(it.headers["Content-Length"]) for it in server.requests("PATCH")]
    assert sizes[:-1] == [400_000] * (len(sizes) - 1)


def test_ecr_and_ghcr_get_what_they_can_take() -> None:
    ecr = Limits.of("123456789012.dkr.ecr.eu-central-1.amazonaws.com")
    assert ecr.chunk is None
    assert Limits.of("public.ecr.aws").chunk is None
    assert Limits.of("ghcr.io").chunk == 4 << 20
    assert Limits.of("registry.example.org").chunk == 32 << 20


def test_a_file_that_changed_is_found_before_or_by_the_registry(
    server: FaultServer, connect: Connect, large: Image
) -> None:
    path = large.layers[0].blob
    assert isinstance(path, Path)
    path.write_bytes(bytes(large.layers[0].size))
    with pytest.raises(DigestMismatch, match="its bytes have another digest"):
        connect(server).push(large)
    path.write_bytes(b"short")
    server.seen.clear()
    with pytest.raises(DigestMismatch, match="has 5 bytes") as caught:
        connect(server).push(large)
    assert caught.value.path == path
    assert not [it for it in server.seen if large.layers[0].digest in it.path]
    assert not server.manifests


def test_a_registry_that_stores_something_else_is_found(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    other = "sha256:" + "0" * 64
    server.on("PUT", "/manifests/", answer(201, Docker_Content_Digest=other))
    with pytest.raises(DigestMismatch, match=f"as {other}"):
        connect(server).push(sample)


def test_the_first_failure_ends_the_other_uploads(
    server: FaultServer, connect: Connect, tmp_path: Path
) -> None:
    it = image(*(layer({f"d{n}": noise(400_000, n)}, "code", tmp_path) for n in range(12)))
    server.on("PUT", "/uploads/", error(403, "DENIED"), times=99)
    with pytest.raises(RegistryError, match="403"):
        connect(server).push(it)
    assert len(server.requests("POST")) < 13


# Mounts


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_mount_that_is_refused_becomes_an_upload(
    server: FaultServer, connect: Connect, tmp_path: Path, status: int
) -> None:
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    connect(server, "other/one").push(it)
    server.on("POST", "mount=", answer(status), times=9)
    connect(server).push(it)
    assert arrived(server, it)


def test_a_mount_that_opens_a_session_goes_on_with_it(
    server: FaultServer, connect: Connect, tmp_path: Path
) -> None:
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    connect(server, "other/one").push(it)
    server.seen.clear()
    server.mounts = False
    connect(server).push(it)
    assert arrived(server, it)
    assert len(server.requests("POST")) == 2


def test_a_mount_takes_the_blob_over(server: FaultServer, connect: Connect, tmp_path: Path) -> None:
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    connect(server, "other/one").push(it)
    server.seen.clear()
    connect(server).push(it)
    assert arrived(server, it)
    assert not [r for r in server.requests("PUT") if it.layers[0].digest in r.path]
