"""A registry that is down, refuses, stumbles, lies or hangs up: one clear error, or the job done."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3

from clustrix_containers.errors import DigestMismatch, ImageError, RegistryError
from clustrix_containers.oci import Descriptor, Image
from clustrix_containers.registry import Remote, digest_tag
from clustrix_containers.registry.upload import Limits
from tests.faults import FaultServer, answer, close, cut, error, forget, lose_answer, wait
from tests.samples import image, layer, noise
from tests.unit.registry.conftest import FAST

Connect = Callable[..., Remote]
CHUNKS = Limits(chunk_above=100_000, chunk=100_000)


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


# Refusals


@pytest.mark.parametrize(
    ("status", "code", "sentence", "hint"),
    [
        (401, "UNAUTHORIZED", "answered 401 Unauthorized for pushing team/runs", "docker login"),
        (403, "DENIED", "answered 403 Forbidden for pushing team/runs", "docker login"),
        (404, "NAME_UNKNOWN", "answered 404 Not Found for pushing team/runs", "Check the name"),
        (405, "UNSUPPORTED", "answered 405 Method Not Allowed for pushing team/runs", ""),
    ],
)
def test_a_push_that_is_refused_is_not_tried_again(
    server: FaultServer,
    connect: Connect,
    sample: Image,
    status: int,
    code: str,
    sentence: str,
    hint: str,
) -> None:
    server.on("POST", "", error(status, code, "go away\n\x1b[31m"), times=9)
    with pytest.raises(RegistryError) as caught:
        connect(server).push(sample)
    assert f"{server.address} {sentence}" in str(caught.value)
    assert "go away" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert hint in str(caught.value)
    assert (caught.value.status, caught.value.codes) == (status, (code,))
    assert not caught.value.temporary
    assert len(server.requests("POST")) <= 2
    assert not server.manifests


def test_a_manifest_that_may_be_hidden_says_so(server: FaultServer, connect: Connect) -> None:
    server.on("GET", "/manifests/", error(403, "DENIED"))
    with pytest.raises(RegistryError, match="or it does not exist"):
        connect(server).image("v1")
    with pytest.raises(RegistryError, match="404 Not Found") as caught:
        connect(server).image("v1")
    assert caught.value.codes == ("MANIFEST_UNKNOWN",)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for(
    server: FaultServer, connect: Connect, sample: Image, status: int
) -> None:
    for method, path in [("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")]:
        server.on(method, path, answer(status, b"<html>no JSON</html>"), times=2)
    connect(server).push(sample)
    assert arrived(server, sample)


@pytest.mark.parametrize("status", [429, 500])
def test_what_does_not_pass_is_given_up(
    server: FaultServer, connect: Connect, sample: Image, status: int
) -> None:
    server.on("PUT", "/manifests/", answer(status), times=99)
    with pytest.raises(RegistryError, match=f"answered {status}") as caught:
        connect(server).push(sample)
    assert caught.value.temporary
    assert len(server.requests("PUT", "/manifests/")) == 4


def test_retry_after_is_obeyed(server: FaultServer, connect: Connect, sample: Image) -> None:
    import time

    server.on("PUT", "/manifests/", answer(429, Retry_After="1"))
    begun = time.monotonic()
    connect(server).push(sample)
    assert time.monotonic() - begun >= 1


def test_a_retry_after_beyond_patience_is_said_at_once(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    server.on("PUT", "/manifests/", answer(429, Retry_After="3600"), times=9)
    with pytest.raises(RegistryError, match="try again in 3600 s") as caught:
        connect(server).push(sample)
    assert caught.value.retry_after == 3600
    assert len(server.requests("PUT", "/manifests/")) == 1


# Networks


def test_a_registry_that_is_down(connect: Connect, sample: Image) -> None:
    with FaultServer() as server:
        pass
    with pytest.raises(RegistryError, match=f"nothing answers at {server.address}") as caught:
        connect(server).push(sample)
    assert caught.value.temporary
    assert caught.value.status is None


def test_a_host_that_does_not_exist(sample: Image, tmp_path: Path) -> None:
    there = Remote("registry.invalid/team/runs", cache=tmp_path, credentials=lambda *_: None)
    with pytest.raises(RegistryError, match=r"registry\.invalid") as caught:
        there.push(sample)
    assert "DNS" in str(caught.value)


def test_something_that_is_no_registry(sample: Image, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(30)

        def speak() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        there = Remote(f"{address}/team/runs", cache=tmp_path, retry=FAST)
        with pytest.raises(RegistryError, match=r"the connection to .* broke off"):
            there.push(sample)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_registry_that_stops_answering(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    never = threading.Event()
    server.on("PUT", "/manifests/", wait(never), times=99)
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=0.1), retries=False)
    try:
        with pytest.raises(RegistryError, match="stopped answering"):
            connect(server, pool=pool).push(sample)
    finally:
        never.set()


# Uploads


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
    with pytest.raises(RegistryError, match="broke off"):
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
    server.on("PUT", "/uploads/", answer(413), times=1, after=1)
    server.on("PUT", "/uploads/", answer(413), times=1)
    connect(server).push(large)
    assert arrived(server, large)
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
    server.on("POST", "mount=", answer(status), times=9)
    connect(server).push(it, mount_from=["other/one"])
    assert arrived(server, it)


def test_a_mount_that_opens_a_session_goes_on_with_it(
    server: FaultServer, connect: Connect, tmp_path: Path
) -> None:
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    server.mounts = False
    connect(server).push(it, mount_from=["other/one"])
    assert arrived(server, it)
    assert len(server.requests("POST")) == 2


def test_a_mount_takes_the_blob_over(server: FaultServer, connect: Connect, tmp_path: Path) -> None:
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    connect(server, "other/one").push(it)
    server.seen.clear()
    connect(server, cache=tmp_path / "empty").push(it, mount_from=["other/one"])
    assert arrived(server, it)
    assert not [r for r in server.requests("PUT") if it.layers[0].digest in r.path]


# Downloads


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
    seen: list[int] = []
    connect(server).fetch_blob(blob, tmp_path / "blob", lambda _blob, done: seen.append(done))
    assert (tmp_path / "blob").read_bytes() == server.blobs["team/runs", blob.digest]
    assert len(server.requests("GET")) == 9
    assert server.seen[-1].headers["Range"] == "bytes=800000-"
    assert seen[-1] == blob.size


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
    with pytest.raises(RegistryError, match="broke off"):
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


def test_tags_come_in_pages(server: FaultServer, connect: Connect) -> None:
    first = answer(200, b'{"tags": ["b"]}', Link='</v2/team/runs/tags/list?last=b&n=1>; rel="next"')
    server.on("GET", "/tags/list", first)
    server.on("GET", "last=b", answer(200, b'{"tags": ["a"]}'))
    assert connect(server).tags() == ["a", "b"]
