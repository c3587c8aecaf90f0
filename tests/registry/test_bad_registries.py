"""Registries that fail, as a user of the command line meets them: one clear error, nothing left behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.faults import FaultServer, Handler, answer, close, cut, error

from .users import User

FOREVER = float("inf")
OTHER = "sha256:" + "0" * 64

# A function whose code is larger than what a socket's buffers swallow.
LARGE = 'DATA = """\n' + ("x" * 99 + "\n") * 20_000 + '"""\n\n\ndef square(x):\n    return x * x\n'


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def refuse(handler: Handler) -> bool:
    handler.fail(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="here"'})
    return False


def one_error(text: str) -> str:
    """The error and its hint, without the lines of progress before it."""
    start = text.index("error: ")
    assert text.count("error: ") == 1
    assert len(text[start:].strip().splitlines()) <= 2
    return text[start:]


@dataclass(frozen=True)
class Case:
    """Requests that fail for good, and what the user must read."""

    method: str
    path: str
    act: Callable[[Handler], bool]
    parts: tuple[str, ...]


PUSHES = {
    "403": Case("POST", "/uploads/", error(403, "DENIED"), ("403 Forbidden", "docker login")),
    "404": Case("POST", "/uploads/", error(404, "NAME_UNKNOWN"), ("404 Not Found", "Check")),
    "429": Case(
        "POST",
        "/uploads/",
        error(429, "TOOMANYREQUESTS", Retry_After="3600"),
        ("429 Too Many Requests", "try again in 3600 s", "Logging in"),
    ),
    "500": Case("PUT", "/manifests/", answer(500), ("500 Internal Server Error",)),
    "wrong digest": Case(
        "PUT", "/uploads/", answer(201, Docker_Content_Digest=OTHER), ("stored sha256:", OTHER)
    ),
    "closes mid-upload": Case("", "/uploads/.+", cut(after=1000), ("was lost",)),
    "closes at once": Case("PUT", "/manifests/", close(), ("was lost",)),
}


@pytest.mark.parametrize("case", PUSHES.values(), ids=PUSHES)
def test_a_push_that_fails_is_one_error_and_can_be_done_again(
    case: Case, server: FaultServer, author: User
) -> None:
    author.write(LARGE)
    server.on(case.method, case.path, case.act, times=FOREVER)

    done = author.cxc("push", "work.py:square", f"{server.address}/team/runs", code=1)

    message = one_error(done.stderr)
    assert server.address in message
    for part in case.parts:
        assert part in message
    assert done.stdout == ""
    assert server.manifests == {}
    assert author.remains() == []
    server.faults.clear()
    author.cxc("push", "work.py:square", f"{server.address}/team/runs")


def test_a_registry_that_is_down(author: User, stranger: User) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{taken.getsockname()[1]}/team/runs"
        pushed = author.cxc("push", "work.py:square", name, code=1)
        pulled = stranger.cxc("rerun", f"{name}@{OTHER}", code=1)
    for done, user in ((pushed, author), (pulled, stranger)):
        message = one_error(done.stderr)
        assert "cannot connect to 127.0.0.1:" in message
        assert "Is the registry running" in message
        assert user.remains() == []


def test_without_and_with_wrong_credentials(server: FaultServer, author: User) -> None:
    server.auth = refuse
    name = f"{server.address}/team/runs"
    message = one_error(author.cxc("push", "work.py:square", name, code=1).stderr)
    assert "401 Unauthorized" in message
    assert "no credentials for this host" in message
    assert f"docker login {server.address}" in message
    file = author.home / "docker" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"auths": {server.address: {"auth": "bWU6aHVudGVyMg=="}}}))
    message = one_error(author.cxc("push", "work.py:square", name, code=1).stderr)
    assert f"does not accept the credentials from {file}" in message
    assert "hunter2" not in message
    assert author.remains() == []


HEALS = {
    "429": ("POST", "/uploads/", error(429, "TOOMANYREQUESTS", Retry_After="0"), 2),
    "500": ("", "/v2/", answer(500), 3),
    "closes mid-upload": ("PUT", "/uploads/", cut(after=100_000), 1),
    "closes before its answer": ("PUT", "/manifests/", close(), 1),
}


@pytest.mark.parametrize("fault", HEALS.values(), ids=HEALS)
def test_what_passes_is_tried_again(
    fault: tuple[str, str, Callable[[Handler], bool], int], server: FaultServer, author: User
) -> None:
    author.write(LARGE)
    server.on(*fault)
    done = author.cxc("push", "work.py:square", f"{server.address}/team/runs")
    digest = done.stdout.strip().rpartition("@")[2]
    assert ("team/runs", digest) in server.manifests
    if fault[2] is HEALS["closes mid-upload"][2]:
        assert server.requests("GET", "/uploads/")


PULLS = {
    "403": Case("GET", "/manifests/", error(403, "DENIED"), ("403 Forbidden", "docker login")),
    "404": Case("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"), ("404 Not Found", "Check")),
    "429": Case(
        "GET", "/blobs/", error(429, "TOOMANYREQUESTS", Retry_After="3600"), ("429", "3600 s")
    ),
    "500": Case("GET", "/blobs/", answer(500), ("500 Internal Server Error",)),
    "wrong manifest": Case("GET", "/manifests/", answer(200, b"{}"), ("sent a manifest with",)),
    "wrong blob": Case("GET", "/blobs/", answer(200, b"{}"), ("sha256:",)),
    "closes in a blob": Case("GET", "/blobs/", cut(after=0), ("was lost",)),
}


@pytest.mark.parametrize("case", PULLS.values(), ids=PULLS)
def test_a_rerun_from_a_registry_that_fails_leaves_nothing(
    case: Case, server: FaultServer, author: User, stranger: User
) -> None:
    pushed = author.cxc("push", "work.py:square", f"{server.address}/team/runs").stdout.strip()
    server.on(case.method, case.path, case.act, times=FOREVER)

    done = stranger.cxc("rerun", "--trust", pushed, code=1)

    message = one_error(done.stderr)
    assert server.address in message
    for part in case.parts:
        assert part in message
    assert stranger.remains() == []
    assert not [it for it in stranger.home.rglob("blobs/**/*") if it.is_file()]
    assert not list(stranger.images.glob("index.json"))


def test_a_rerun_that_fails_at_a_later_layer_goes_on_from_there(
    server: FaultServer, author: User, stranger: User
) -> None:
    pushed = author.cxc("push", "work.py:square", f"{server.address}/team/runs").stdout.strip()
    # The config and one layer come, the next one never does whole.
    server.on("GET", "/blobs/", error(403, "DENIED"), times=FOREVER, after=2)

    message = one_error(stranger.cxc("rerun", "--trust", pushed, code=1).stderr)

    assert "403 Forbidden" in message
    assert stranger.remains() == []
    assert not list(stranger.images.glob("index.json"))
    assert not list(stranger.cache.rglob("*.part"))
    server.faults.clear()
    server.seen.clear()
    _, manifest = server.manifests["team/runs", pushed.rpartition("@")[2]]
    layers = json.loads(manifest)["layers"]
    stranger.cxc("rerun", "--detach", "--trust", pushed)
    fetched = [it.path for it in server.requests("GET", "/blobs/")]
    assert not [path for path in fetched if path.endswith(layers[0]["digest"])]
    assert [path for path in fetched if path.endswith(layers[1]["digest"])]
