from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import installer
import pytest
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import ImageError
from clustrix_containers.packages.lock import Package, Wheel
from clustrix_containers.packages.wheels import wheelhouse
from clustrix_containers.packages.wheels.wheelhouse import locate, obtain

from .making import make_wheel

FILES = {
    "pkg/__init__.py": b"x = 1\n",
    "pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\np = pkg:x\n",
}


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index settings but those of the test."""
    for variable in os.environ:
        if variable.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").touch(0o600)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only source of wheels."""
    folder = tmp_path / "index with a space"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


@dataclass
class Server:
    """A package index (PEP 691) over HTTP, which can require a password and break connections."""

    folder: Path
    url: str = ""
    password: str = ""
    fail: dict[str, list[int]] = field(default_factory=dict)
    """By path, what the next responses are: a status, or 0 for half of the body."""
    requests: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        self.state.requests.append(self.path)
        if self.state.password and self.headers.get("Authorization") != self.state.password:
            self.respond(401, b"")
            return
        fault = (self.state.fail.get(self.path) or [None]).pop(0)  # type: ignore[list-item]
        if fault:
            self.respond(fault, b"")
            return
        kind, _, rest = self.path.strip("/").partition("/")
        path = self.state.folder / rest
        if kind == "simple" and (files := sorted(self.state.folder.glob(f"{rest}-*.whl"))):
            page = {
                "meta": {"api-version": "1.0"},
                "name": rest,
                "files": [
                    {
                        "filename": file.name,
                        "url": f"/files/{file.name}",
                        "hashes": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
                    }
                    for file in files
                ],
            }
            self.respond(200, json.dumps(page).encode())
        elif kind == "files" and path.is_file():
            data = path.read_bytes()
            self.respond(200, data, half=fault == 0)
        else:
            self.respond(404, b"")

    def respond(self, status: int, body: bytes, *, half: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The only index of the test."""
    state = Server(tmp_path / "served")
    state.folder.mkdir()
    handler = type("Bound", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_port}/simple"
        monkeypatch.setenv("PIP_INDEX_URL", state.url)
        yield state
        httpd.shutdown()
        thread.join()


def install(wheel: Path, site: Path) -> Distribution:
    schemes = dict.fromkeys(("purelib", "platlib", "headers", "data"), str(site))
    destination = SchemeDictionaryDestination(
        {**schemes, "scripts": str(site / "bin")}, interpreter=sys.executable, script_kind="posix"
    )
    with WheelFile.open(wheel) as source:
        installer.install(source, destination, {"INSTALLER": b"x", "REQUESTED": b""})
    name, version = wheel.name.split("-")[:2]
    return Distribution(name, version, (), site, site / f"{name}-{version}.dist-info")


def test_the_wheel_it_came_from(index: Path, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    seen: list[str] = []
    found = locate([distribution], cache=cache, progress=lambda what, *_: seen.append(what))
    (pin,) = found.wheels.values()
    assert pin == Wheel(wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), pin.size)
    assert wheelhouse.wheel_path(cache, pin).read_bytes() == wheel.read_bytes()
    assert seen
    shutil.rmtree(index)
    assert locate([distribution], cache=cache) == found, "no second query"
    assert not list((cache / "tmp").iterdir())


def test_another_environment_uses_what_the_cache_has(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    found = locate([install(wheel, tmp_path / "a")], cache=cache)
    other = install(wheel, tmp_path / "b")
    (other.info / "REQUESTED").unlink(missing_ok=True)
    record = other.info / "RECORD"
    record.write_text(record.read_text() + "pkg/__pycache__/x.pyc,,\n")
    assert locate([other], cache=cache, fetch=False) == found


def test_another_build_is_not_used(index: Path, tmp_path: Path, cache: Path) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    make_wheel(index, "pkg", {**FILES, "pkg/__init__.py": b"x = 2\n"})
    located = locate([distribution], cache=cache)
    assert not located.wheels
    reason = "the installed files differ from pkg-1.0-py3-none-any.whl: pkg/__init__.py"
    assert located.reasons == {"pkg": reason}
    assert locate([distribution], cache=cache, fetch=False) == located, "it is remembered"


def test_missing_wheels_are_not_searched_again(index: Path, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    other = make_wheel(index, "other", {"other.py": b""})
    both = [install(wheel, tmp_path / "site"), install(other, tmp_path / "site")]
    wheel.rename(tmp_path / wheel.name)
    assert set(locate(both, cache=cache).wheels) == {"other"}, (
        "one that is missing does not hide the others"
    )
    (tmp_path / wheel.name).rename(wheel)
    assert set(locate(both, cache=cache).wheels) == {"other"}
    for path in (cache / "located").iterdir():
        value = json.loads(path.read_bytes())
        if "until" in value:
            assert value["until"] > time.time() + wheelhouse.RETRY_AFTER / 2
            path.write_text(json.dumps({**value, "until": 0}))
    assert set(locate(both, cache=cache).wheels) == {"other", "pkg"}


def test_an_index_that_is_down(
    tmp_path: Path, cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributions = [
        install(make_wheel(index, f"pkg{n}", {f"pkg{n}.py": b""}), tmp_path / "site")
        for n in range(20)
    ]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    began = time.monotonic()
    located = locate(distributions, cache=cache)
    assert time.monotonic() - began < 10
    assert not located.wheels
    (reason,) = set(located.reasons.values())
    assert reason.startswith("no package index responded (cannot connect to 127.0.0.1: ")
    for note in (cache / "located").iterdir():
        value = json.loads(note.read_bytes())
        assert value["until"] < time.time() + wheelhouse.RETRY_OFFLINE_AFTER + 1


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ({"url": "file:///src", "dir_info": {}}, "it was built from file:///src"),
        (
            {"url": "file:///src", "dir_info": {"editable": True}},
            "it was installed as editable from file:///src",
        ),
        (
            {
                "url": "https://me:secret@example.org/x.git",
                "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"},
            },
            "it was built from git+https://example.org/x.git@0123456789ab",
        ),
        (
            {"url": "file:///x-1.0.tar.gz", "archive_info": {}},
            "it was built from file:///x-1.0.tar.gz",
        ),
    ],
)
def test_local_builds_are_never_searched_for(
    origin: dict[str, object], reason: str, index: Path, tmp_path: Path, cache: Path
) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    (distribution.info / "direct_url.json").write_text(json.dumps(origin))
    located = locate([distribution], cache=cache)
    assert located.reasons == {"pkg": reason}
    assert not located.wheels
    assert not cache.exists()


def test_without_a_record(index: Path, tmp_path: Path, cache: Path) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    (distribution.info / "RECORD").unlink()
    reason = "it has no RECORD of its files and their hashes"
    assert locate([distribution], cache=cache).reasons == {"pkg": reason}


def test_a_wheel_that_was_installed_by_its_path(index: Path, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(tmp_path / "elsewhere", "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    origin = {"url": wheel.as_uri(), "archive_info": {}}
    (distribution.info / "direct_url.json").write_text(json.dumps(origin))
    assert locate([distribution], cache=cache).wheels["pkg"].filename == wheel.name


def test_changed_installed_files_are_not_replaced_by_the_wheel(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    (tmp_path / "site/pkg/__init__.py").write_bytes(b"x = 3\n")
    reason = "its installed files were changed: pkg/__init__.py"
    assert locate([distribution], cache=cache).reasons == {"pkg": reason}
    clean = install(wheel, tmp_path / "clean")
    assert locate([clean], cache=cache).wheels, "another environment has its own files"


def test_the_one_of_several_wheels_that_is_installed(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    make_wheel(index, "pkg", {**FILES, "pkg/extra.py": b""}, tag="py2.py3-none-any")
    for tag in ("py3-none-win32", "cp27-cp27m-win_amd64"):
        make_wheel(index, "pkg", FILES, tag=tag)
    installed = make_wheel(index, "pkg", FILES)
    found = locate([install(installed, tmp_path / "site")], cache=cache)
    assert found.wheels["pkg"].filename == installed.name


def test_an_unrecorded_file_in_a_wheel_is_not_accepted(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    wheel = make_wheel(index, "pkg", FILES, extra=[("pkg/evil.py", b"evil")])
    reason = f"the installed files differ from {wheel.name}: pkg/evil.py"
    assert locate([distribution], cache=cache).reasons == {"pkg": reason}


def test_over_http(server: Server, tmp_path: Path, cache: Path) -> None:
    names = [f"pkg{n}" for n in range(12)]
    installed = [
        install(make_wheel(server.folder, name, {f"{name}.py": name.encode()}), tmp_path / "site")
        for name in names
    ]
    lacking = install(make_wheel(tmp_path, "other", {"other.py": b""}), tmp_path / "site")
    located = locate([*installed, lacking], cache=cache)
    assert set(located.wheels) == set(names)
    wheel = located.wheels["pkg3"]
    assert wheel.url == f"{server.url.removesuffix('simple')}files/{wheel.filename}"
    reason = "the package index has no wheel of it for this Python and machine"
    assert located.reasons == {"other": reason}
    before = len(server.requests)
    assert locate([*installed, lacking], cache=cache) == located
    assert len(server.requests) == before, "no query for what is known"


@pytest.mark.parametrize("faults", [[503, 500], [0], [0, 503]])
def test_transient_failures_are_retried(
    faults: list[int], server: Server, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(server.folder, "pkg", {**FILES, "pkg/big": os.urandom(1 << 20)})
    server.fail = {f"/files/{wheel.name}": list(faults), "/simple/pkg/": [502]}
    located = locate([install(wheel, tmp_path / "site")], cache=cache)
    assert located.wheels["pkg"].sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert server.requests.count(f"/files/{wheel.name}") == len(faults) + 1


def test_retries_are_bounded(server: Server, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(server.folder, "pkg", FILES)
    server.fail = {f"/files/{wheel.name}": [503] * 99}
    located = locate([install(wheel, tmp_path / "site")], cache=cache)
    reason = f"{wheel.name} cannot be downloaded: 127.0.0.1 responded 503 Service Unavailable"
    assert located.reasons == {"pkg": reason}
    assert len(server.requests) == 4


@pytest.mark.parametrize("where", ["url", "netrc", "uv", "nowhere"])
def test_credentials(
    where: str, server: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(server.folder, "pkg", FILES)
    server.password = "Basic bWU6c2VjcmV0"  # me:secret
    if where == "url":
        monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//me:secret@"))
    elif where == "netrc":
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    elif where == "uv":
        monkeypatch.delenv("PIP_INDEX_URL")
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"my-own={server.url}")
        monkeypatch.setenv("UV_INDEX_MY_OWN_USERNAME", "me")
        monkeypatch.setenv("UV_INDEX_MY_OWN_PASSWORD", "secret")
    located = locate([install(wheel, tmp_path / "site")], cache=cache)
    if where == "nowhere":
        assert "127.0.0.1 responded 401" in located.reasons["pkg"]
    else:
        assert located.wheels["pkg"].filename == wheel.name
        assert "secret" not in str(located)


def test_the_wheels_of_a_lock(server: Server, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(server.folder, "pkg", FILES, tag="cp27-cp27m-win_amd64")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pin = Wheel(wheel.name, sha256, wheel.stat().st_size)
    obtain([Package("pkg", "1.0", pin, None)], cache=cache)
    path = wheelhouse.wheel_path(cache, pin)
    assert path.read_bytes() == wheel.read_bytes()
    other = Package("pkg", "1.0", Wheel(wheel.name, "0" * 64, 1), None)
    with pytest.raises(ImageError, match=r"cannot be downloaded: Hash mismatch for .*0000"):
        obtain([other], cache=cache)
    assert not list((cache / "tmp").iterdir())


def test_a_truncated_wheel_in_the_cache_is_fetched_again(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    found = locate([distribution], cache=cache).wheels["pkg"]
    stored = wheelhouse.wheel_path(cache, found)
    stored.write_bytes(stored.read_bytes()[:100])
    assert locate([distribution], cache=cache).wheels["pkg"] == found
    assert stored.read_bytes() == wheel.read_bytes()
