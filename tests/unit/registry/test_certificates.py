"""Certificates where Docker and Podman have them, and which registries get plain http."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.errors import ConfigError, RegistryError
from clustrix_containers.oci.model import Image, Reference
from clustrix_containers.registry import Remote
from clustrix_containers.registry.http.auth import Trust, find_trust
from clustrix_containers.registry.http.transport import Transport
from tests.clusters.certificates import Authority
from tests.faults import FaultServer

from .conftest import FAST, arrived

Connect = Callable[..., Remote]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own configuration directory."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("CLUSTRIX_INSECURE_REGISTRIES", raising=False)
    return tmp_path


def put(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)


def test_the_users_own_directory_comes_first_and_an_empty_one_is_skipped(own: Path) -> None:
    host = "registry.example.org:5000"
    put(own / "config" / "containers" / "certs.d" / host, README_txt="")
    put(own / "docker" / "certs.d" / host, b_crt="", a_crt="", me_cert="", me_key="")

    trust = find_trust(host)

    directory = own / "docker" / "certs.d" / host
    assert trust.authorities == (directory / "a.crt", directory / "b.crt")
    assert trust.client == (directory / "me.cert", directory / "me.key")
    assert find_trust("registry.example.org") == Trust()
    put(own / "config" / "docker" / "certs.d" / host, c_crt="")
    assert [it.name for it in find_trust(host).authorities] == ["c.crt"]


def test_a_client_certificate_without_its_key_is_named(own: Path) -> None:
    put(own / "docker" / "certs.d" / "example.org", me_cert="")
    with pytest.raises(ConfigError, match=r"me\.cert has no key") as caught:
        find_trust("example.org")
    assert "me.key" in str(caught.value)


def test_a_client_certificate_that_is_none_is_named(own: Path) -> None:
    put(own / "docker" / "certs.d" / "example.org", me_cert="x", me_key="y")
    with pytest.raises(ConfigError, match=r"use the certificate .*me\.cert"):
        find_trust("example.org").context()


def test_a_registry_on_this_machine_that_wants_tls_gets_it(
    own: Path, connect: Connect, sample: Image
) -> None:
    authority = Authority(own / "authority")
    authority.make()
    pair = authority.sign("server")
    with FaultServer(tls=(pair.certificate, pair.key)) as server:
        put(own / "docker" / "certs.d" / server.address)
        trusted = own / "docker" / "certs.d" / server.address / "ca.crt"
        trusted.write_bytes(authority.pair.certificate.read_bytes())
        connect(server).push(sample)
        assert arrived(server, sample)
        trusted.write_bytes(b"nothing")
        with pytest.raises(ConfigError, match=r"cannot use the certificate .*ca\.crt"):
            connect(server).push(sample)


def test_a_refusal_of_plain_http_whose_words_were_lost_means_tls_too() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(1 << 16)[:1])
                    if seen[-1] != b"\x16":  # a TLS handshake
                        connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        remote = Remote(f"{address}/team/runs", credentials=lambda *_: None, retry=FAST)
        with pytest.raises(RegistryError) as caught:
            remote.image("latest")
        listener.shutdown(socket.SHUT_RDWR)
    assert "answered 400" not in str(caught.value)
    assert b"\x16" in seen


def origin(name: str, **options: bool) -> str:
    return Transport(Reference.parse(name), lookup=lambda *_: None, **options).origin


def test_plain_http_is_for_this_machine_and_for_those_that_the_user_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert origin("localhost:5000/a/b") == "http://localhost:5000"
    assert origin("lab:5000/a/b") == "https://lab:5000"
    monkeypatch.setenv("CLUSTRIX_INSECURE_REGISTRIES", "10.0.0.7:5000, lab:5000")
    assert origin("lab:5000/a/b") == "http://lab:5000"
    assert origin("10.0.0.7:5000/a/b") == "http://10.0.0.7:5000"
    assert origin("lab:5001/a/b") == "https://lab:5001"
    assert origin("lab.example.org/a/b") == "https://lab.example.org"
    assert origin("lab:5000/a/b", insecure=False) == "https://lab:5000"


def test_the_error_of_a_registry_without_tls_names_the_variable(
    connect: Connect, server: FaultServer, sample: Image
) -> None:
    with pytest.raises(RegistryError, match="does not speak TLS") as caught:
        connect(server, insecure=False).push(sample)
    assert f"CLUSTRIX_INSECURE_REGISTRIES={server.address}" in str(caught.value)
