"""The registry cluster itself: the four verbs, and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.ports import bind
from tests.clusters.registry.cluster import Registries

pytestmark = pytest.mark.registry


def verb(name: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clusters.registry", name],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_four_verbs_from_a_shell(tmp_path: Path) -> None:
    try:
        up = verb("up", tmp_path)
        assert verb("up", tmp_path) == up
        assert verb("env", tmp_path) == up
        values = dict(
            line.removeprefix("export ").split("=", 1) for line in up.splitlines() if line[0] != "#"
        )
        address = values["CLUSTRIX_TEST_REGISTRY_OPEN"]
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port))).close()
        assert "listening on" in verb("logs", tmp_path)
    finally:
        verb("down", tmp_path)
    verb("down", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match="apt-get install docker-registry"):
        Registries(tmp_path / "state").up()


def test_the_environment_of_podman_and_skopeo_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    registries = Registries(tmp_path / "state")
    try:
        registries.up()
    finally:
        registries.down()


def test_a_port_that_another_took_is_given_up_unless_somebody_knows_it(tmp_path: Path) -> None:
    registries = Registries(tmp_path / "state", with_parent=True)
    try:
        registries.up()
        address = registries.open.address
        registries.stop("open")
        with bind("127.0.0.1", int(address.rpartition(":")[2])):
            with pytest.raises(StartError, match="address already in use"):
                registries.start("open")
            (registries.directory / "open" / "port-is-known").unlink()
            registries.start("open")
            assert registries.open.address != address
    finally:
        registries.down()
