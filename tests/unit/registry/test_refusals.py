"""A registry that is down, refuses or stumbles: one clear error, or the job done."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote
from clustrix_containers.registry.push import Limits
from tests.faults import FaultServer, answer, error, wait
from tests.unit.registry.conftest import FAST, arrived

Connect = Callable[..., Remote]
CHUNKS = Limits(chunk_above=100_000, chunk=100_000)


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


@pytest.mark.parametrize(
    ("detail", "cause"),
    [
        ("write /" + "long/" * 99 + "data: no space left on device", "no space left on device"),
        ({"DriverName": "filesystem", "Enclosed": {"Op": "mkdir", "Err": 30}}, "Read-only file"),
        ({"DriverName": "s3", "Enclosed": "no\x1b such bucket"}, "such bucket"),
        (None, "unknown error"),
    ],
)
def test_the_cause_of_an_unknown_error_is_in_the_message(
    server: FaultServer, connect: Connect, sample: Image, detail: object, cause: str
) -> None:
    body = {"errors": [{"code": "UNKNOWN", "message": "unknown error", "detail": detail}]}
    server.on("POST", "", answer(500, json.dumps(body).encode()), times=99)
    with pytest.raises(RegistryError, match=cause) as caught:
        connect(server).push(sample)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_manifest_that_may_be_hidden_has_its_own_message(
    server: FaultServer, connect: Connect
) -> None:
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


def test_a_retry_after_beyond_patience_fails_at_once(
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
    with pytest.raises(RegistryError, match=f"cannot connect to {server.address}") as caught:
        connect(server).push(sample)
    assert caught.value.temporary
    assert caught.value.status is None


def test_a_host_that_does_not_exist(sample: Image, tmp_path: Path) -> None:
    there = Remote("registry.invalid/team/runs", cache=tmp_path, credentials=lambda *_: None)
    with pytest.raises(RegistryError, match=r"registry\.invalid") as caught:
        there.push(sample)
    assert "DNS" in str(caught.value)


def test_a_proxy_is_used_where_the_environment_names_one(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, server.url)
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    far = Remote("registry.invalid/team/runs", insecure=True, cache=tmp_path, retry=FAST)
    server.on("GET", "", error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryError, match=r"registry\.invalid answered 404"):
        far.image("v1")
    assert str(server.seen[0]) == "GET http://registry.invalid/v2/team/runs/manifests/v1"
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with pytest.raises(RegistryError, match="DNS"):
        far.image("v1")
    assert len(server.seen) == 1


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
        with pytest.raises(RegistryError, match=r"the connection to .* was lost"):
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
        with pytest.raises(RegistryError, match="timed out waiting"):
            connect(server, pool=pool).push(sample)
    finally:
        never.set()
