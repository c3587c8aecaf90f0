"""Credentials from the files and helpers of Docker and Podman."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.credentials.registry import Credential, lookup
from clustrix_containers.errors import ConfigError

HUB = "https://index.docker.io/v1/"


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home in which no file and no helper of this machine is found."""
    path = tmp_path / "ho'me ü"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def write(home: Path) -> Callable[..., Path]:
    """``write({"auths": …})`` makes ``~/.docker/config.json``, or the file ``where``."""

    def make(config: Any, where: Path | None = None) -> Path:
        path = where or home / ".docker" / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config if isinstance(config, str) else json.dumps(config), "utf-8")
        return path

    return make


@pytest.fixture
def helper(tmp_path: Path) -> Callable[[str, str], Path]:
    """``helper(name, code)`` makes ``docker-credential-NAME``: Python with ``server`` read from stdin."""

    def make(name: str, code: str) -> Path:
        path = tmp_path / "bin" / f"docker-credential-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"#!{sys.executable} -S\nimport json, sys\n"
            f"assert sys.argv[1:] == ['get']\nserver = sys.stdin.read()\n{code}\n"
        )
        path.chmod(0o755)
        return path

    return make


def answer(username: str, secret: str) -> str:
    return f"print(json.dumps(dict(ServerURL=server, Username={username!r}, Secret={secret!r})))"


def test_without_files_there_is_nothing(home: Path) -> None:
    assert lookup("registry.example.org", "team/runs") is None


def test_a_password_from_dockers_file(write: Callable[..., Path]) -> None:
    path = write({"auths": {"registry.example.org:5000": auth("me", "a:b:é")}})
    found = lookup("registry.example.org:5000", "team/runs")
    assert found == Credential("me", "a:b:é", source=str(path))
    assert lookup("registry.example.org", "team/runs") is None
    assert lookup("other.example.org:5000") is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "pw"}, Credential("me", "pw")),
        ({**auth("me", "pw"), "identitytoken": "it"}, Credential("me", "pw", "it")),
        ({"identitytoken": "it"}, Credential(identity_token="it")),
        ({"registrytoken": "rt"}, Credential(registry_token="rt")),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_the_kinds_of_entries(
    write: Callable[..., Path], entry: dict[str, str], expected: Credential | None
) -> None:
    write({"auths": {"r.example.org": entry}})
    found = lookup("r.example.org")
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.username, found.password) == (expected.username, expected.password)
        assert found.identity_token == expected.identity_token
        assert found.registry_token == expected.registry_token


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
@pytest.mark.parametrize("key", [HUB, "docker.io", "index.docker.io"])
def test_docker_hub_has_many_names(write: Callable[..., Path], name: str, key: str) -> None:
    write({"auths": {key: auth("me", "pw")}})
    found = lookup(name, "library/python")
    assert found is not None
    assert found.password == "pw"


@pytest.mark.parametrize("key", ["https://r.example.org", "http://r.example.org/v2/"])
def test_a_key_may_be_an_address(write: Callable[..., Path], key: str) -> None:
    write({"auths": {key: auth("me", "pw")}})
    assert lookup("r.example.org") is not None
    assert lookup("example.org") is None


def test_the_most_specific_key_wins(write: Callable[..., Path]) -> None:
    write(
        {
            "auths": {
                "r.example.org": auth("host", "pw"),
                "r.example.org/team": auth("namespace", "pw"),
                "r.example.org/team/runs": auth("repository", "pw"),
            }
        }
    )
    names = ["team/runs", "team/other", "team/runs/deep", "teams/runs", ""]
    found = [lookup("r.example.org", name) for name in names]
    assert [it.username for it in found if it] == [
        "repository",
        "namespace",
        "repository",
        "host",
        "host",
    ]


def test_the_first_file_that_knows_wins(
    home: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def who() -> str:
        found = lookup("r.example.org")
        return found.username if found else ""

    last = home / ".config" / "containers" / "auth.json"
    write({"auths": {"r.example.org": auth("config", "pw")}}, last)
    assert who() == "config"
    runtime = tmp_path / "run" / "containers" / "auth.json"
    write({"auths": {"r.example.org": auth("runtime", "pw")}}, runtime)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert who() == "runtime"
    write({"auths": {"r.example.org": auth("docker", "pw")}})
    assert who() == "docker"
    write({"auths": {"other.example.org": auth("x", "pw")}}, tmp_path / "d" / "config.json")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "d"))
    assert who() == "runtime"
    write({"auths": {"r.example.org": auth("explicit", "pw")}}, tmp_path / "auth file.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth file.json"))
    assert who() == "explicit"


def test_a_helper_for_one_registry(
    write: Callable[..., Path], helper: Callable[[str, str], Path]
) -> None:
    helper("ours", answer("me", "from the helper"))
    helper("other", "sys.exit('must not be asked')")
    write(
        {
            "auths": {"r.example.org": auth("me", "from the file")},
            "credHelpers": {"r.example.org": "ours"},
            "credsStore": "other",
        }
    )
    found = lookup("r.example.org", "team/runs")
    assert found == Credential("me", "from the helper", source="docker-credential-ours")


@pytest.mark.parametrize(
    ("host", "server"), [("docker.io", HUB), ("r.example.org:5000", "r.example.org:5000")]
)
def test_a_store_is_asked_with_the_name_that_docker_stored(
    write: Callable[..., Path], helper: Callable[[str, str], Path], host: str, server: str
) -> None:
    helper("store", "print(json.dumps(dict(ServerURL=server, Username='me', Secret=server)))")
    write({"auths": {server: {}}, "credsStore": "store"})
    found = lookup(host, "a/b")
    assert found is not None
    assert found.password == server


def test_a_helper_may_give_an_identity_token(
    write: Callable[..., Path], helper: Callable[[str, str], Path]
) -> None:
    helper("store", answer("<token>", "it"))
    write({"credsStore": "store"})
    found = lookup("r.example.org")
    assert found == Credential(identity_token="it", source="docker-credential-store")


def test_a_helper_that_knows_nothing(
    write: Callable[..., Path], helper: Callable[[str, str], Path], home: Path
) -> None:
    helper("store", "print('credentials not found in native keychain'); sys.exit(1)")
    write({"credsStore": "store"})
    assert lookup("r.example.org") is None
    write(
        {"auths": {"r.example.org": auth("me", "pw")}},
        home / ".config" / "containers" / "auth.json",
    )
    assert lookup("r.example.org") is not None


def test_a_helper_that_fails_is_an_error_that_shows_its_output(
    write: Callable[..., Path], helper: Callable[[str, str], Path]
) -> None:
    helper("store", "print('the keychain is locked'); sys.exit(3)")
    write({"credsStore": "store"})
    with pytest.raises(ConfigError, match=r"exit code 3.*the keychain is locked"):
        lookup("r.example.org")


@pytest.mark.parametrize("code", ["print('hunter2')", "print('[\"hunter2\"]')", "pass"])
def test_a_helper_whose_output_is_nonsense_is_an_error_that_hides_it(
    write: Callable[..., Path], helper: Callable[[str, str], Path], code: str
) -> None:
    helper("store", code)
    write({"credsStore": "store"})
    with pytest.raises(ConfigError, match="not a credential") as caught:
        lookup("r.example.org")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_helper_is_an_error_where_it_matters(write: Callable[..., Path]) -> None:
    write({"credHelpers": {"r.example.org": "gone"}})
    with pytest.raises(ConfigError, match=r"docker-credential-gone of .* is not on PATH"):
        lookup("r.example.org")
    write({"auths": {"r.example.org": {}}, "credsStore": "gone"})
    with pytest.raises(ConfigError, match="docker-credential-gone"):
        lookup("r.example.org")
    # Left over from a desktop that is gone: it must not stop an anonymous pull.
    assert lookup("public.example.org") is None


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "x;y", ""])
def test_a_helper_cannot_be_any_program(write: Callable[..., Path], name: str) -> None:
    write({"credHelpers": {"r.example.org": name}})
    with pytest.raises(ConfigError, match="invalid name of a credential helper"):
        lookup("r.example.org")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"auths": {"r.example.org": "hunter2"', "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"auths": []}', None),
        ('{"auths": [1]}', "auths in .* is not an object"),
        ('{"auths": {"r.example.org": {"auth": "hunter2!"}}}', "not base64"),
        ("", None),
        ("{}", None),
    ],
)
def test_a_broken_file_is_one_clear_error(
    write: Callable[..., Path], content: str, message: str | None
) -> None:
    path = write(content)
    if message is None:
        assert lookup("r.example.org") is None
        return
    with pytest.raises(ConfigError, match=message) as caught:
        lookup("r.example.org")
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_an_error(write: Callable[..., Path]) -> None:
    path = write("{}")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        lookup("r.example.org")


def test_no_secret_is_ever_shown() -> None:
    shown = repr(Credential("me", "hunter2", "hunter2", "hunter2", "somewhere"))
    assert "hunter2" not in shown
    assert "me" in shown
