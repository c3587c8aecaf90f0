"""Remote on Debian's docker-registry: open, TLS and a password, bearer tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import LAYER_GZIP, Descriptor, Image, Layer, Reference
from clustrix_containers.registry import Layout, Remote, fetch_layers
from clustrix_containers.registry.push import Limits
from tests.clusters.registry.cluster import Registries, Service
from tests.clusters.registry.token_server import REFRESH
from tests.samples import image, layer, noise, read_all

pytestmark = pytest.mark.registry
Make = Callable[..., Remote]


@pytest.fixture(params=["open", "tls", "token"])
def service(request: pytest.FixtureRequest, registry: Registries) -> Service:
    found: Service = getattr(registry, request.param)
    return found


@pytest.fixture
def sample(tmp_path: Path) -> Image:
    return image(
        layer({"base": noise(300_000, 1)}, "base", tmp_path / "cache"),
        layer({"code": b"print()"}, "code"),
    )


def test_an_image_comes_back_as_it_went(
    service: Service, repository: str, remote: Make, sample: Image
) -> None:
    there = remote(service, repository)
    pushed = there.push(sample, "v1")

    assert pushed == Descriptor(sample.media_type, sample.digest, len(sample.manifest))
    for reference in ("v1", sample.digest, f"v1@{sample.digest}"):
        back = there.image(reference)
        assert (back.manifest, back.config) == (sample.manifest, sample.config)
    for mine in there.image("v1").layers:
        assert mine.origin == Reference(service.address, repository, digest=sample.digest)
        with there.open_blob(mine.descriptor) as blob:
            assert len(blob.read()) == mine.size


def test_what_is_not_there_is_an_error(service: Service, repository: str, remote: Make) -> None:
    with pytest.raises(RegistryError, match="404 Not Found") as caught:
        remote(service, repository).image("v1")
    assert caught.value.status == 404
    assert not caught.value.temporary


def test_large_blobs_go_in_chunks(
    service: Service, repository: str, remote: Make, tmp_path: Path
) -> None:
    it = image(layer({"data": noise(1_000_000)}, "base", tmp_path))
    limits = Limits(chunk_above=100_000, chunk=300_000)
    seen: list[int] = []

    def progress(blob: Descriptor, done: int) -> None:
        if blob.digest == it.layers[0].digest:
            seen.append(done)

    remote(service, repository, limits=limits).push(it, progress=progress)
    target = tmp_path / "fetched"
    remote(service, repository).fetch_blob(it.layers[0].descriptor, target)
    assert target.read_bytes() == Path(str(it.layers[0].blob)).read_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == it.layers[0].size


def test_a_base_by_reference_is_mounted_within_a_registry(
    service: Service, repository: str, remote: Make, sample: Image
) -> None:
    remote(service, f"{repository}/base").push(sample, "base")
    base = remote(service, f"{repository}/base").image("base")
    derived = base.append(layer({"more": b"x"}, "code"))

    remote(service, f"{repository}/derived").push(derived, "d")

    there = remote(service, f"{repository}/derived")
    with there.open_blob(base.layers[0].descriptor) as blob:
        assert blob.read() == Path(str(sample.layers[0].blob)).read_bytes()


def test_a_base_in_another_registry_is_streamed(
    registry_open: Service, registry_tls: Service, repository: str, remote: Make, sample: Image
) -> None:
    remote(registry_tls, repository).push(sample, "base")
    base = remote(registry_tls, repository).image("base")
    there = remote(
        registry_open,
        repository,
        peer=lambda origin: remote(registry_tls, origin.repository),
    )
    there.push(base.append(layer({"more": b"x"}, "code")))
    with there.open_blob(base.layers[0].descriptor) as blob:
        assert blob.read() == Path(str(sample.layers[0].blob)).read_bytes()


def test_a_layout_fetches_the_base_that_it_must_run(
    registry_tls: Service, repository: str, remote: Make, sample: Image, tmp_path: Path
) -> None:
    remote(registry_tls, repository).push(sample, "base")
    base = remote(registry_tls, repository).image("base")
    layout = Layout(tmp_path / "layout")
    fetch = fetch_layers(tmp_path / "fetched", lambda o: remote(registry_tls, o.repository))
    layout.push(base, "base", fetch=fetch)
    read_all(layout, "base")


def test_other_tools_read_what_was_pushed(
    service: Service, repository: str, remote: Make, sample: Image, tmp_path: Path
) -> None:
    remote(service, repository).push(sample, "v1")
    options = ["--src-tls-verify=false"]
    if service.username:
        options.append(f"--src-creds={service.username}:{service.password}")
    source = f"docker://{service.address}/{repository}:v1"
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", *options, source, f"oci:{tmp_path / 'copy'}:v1"],
        check=True,
        capture_output=True,
    )
    assert read_all(Layout(tmp_path / "copy"), "v1").digest == sample.digest


def test_what_other_tools_pushed_is_read(
    registry_open: Service, repository: str, remote: Make, sample: Image, tmp_path: Path
) -> None:
    Layout(tmp_path / "layout").push(sample, "v1")
    target = f"docker://{registry_open.address}/{repository}:v1"
    for kind in ("oci", "v2s2"):
        source = ["--format", kind, f"oci:{tmp_path / 'layout'}:v1", target]
        subprocess.run(
            ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", *source],
            check=True,
            capture_output=True,
        )
        back = remote(registry_open, repository).image("v1")
        assert [it.diff_id for it in back.layers] == [it.diff_id for it in sample.layers]


def test_without_credentials_the_hint_is_docker_login(
    registry_tls: Service, repository: str, remote: Make
) -> None:
    there = remote(registry_tls, repository, credentials=lambda *_: None)
    with pytest.raises(RegistryError) as caught:
        there.push(image(layer({"code": b"print()"})))
    assert str(caught.value).startswith(
        f"{registry_tls.address} answered 401 Unauthorized for pushing {repository}:"
        " no credentials for this host"
    )
    assert f"docker login {registry_tls.address}" in str(caught.value)
    assert caught.value.status == 401
    assert "UNAUTHORIZED" in caught.value.codes


@pytest.mark.parametrize("name", ["tls", "token"])
def test_a_wrong_password_is_named_by_its_source_and_not_shown(
    name: str, registry: Registries, repository: str, remote: Make, sample: Image
) -> None:
    service: Service = getattr(registry, name)
    wrong = Credential("alice", "hunter2", source="/home/me/.docker/config.json")
    with pytest.raises(RegistryError) as caught:
        remote(service, repository, credentials=lambda *_: wrong).push(sample)
    assert "does not accept the credentials from /home/me/.docker/config.json" in str(caught.value)
    assert f"docker login {service.address}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_anybody_may_pull_where_the_token_service_permits_it(
    registry_token: Service, repository: str, remote: Make, sample: Image
) -> None:
    remote(registry_token, repository).push(sample, "v1")
    nobody = remote(registry_token, repository, credentials=lambda *_: None)
    assert nobody.image("v1").digest == sample.digest
    with pytest.raises(RegistryError, match="docker login") as caught:
        nobody.push(image(layer({"a": b"a"})))
    assert caught.value.status in (401, 403)


def test_an_identity_token_is_enough(
    registry_token: Service, repository: str, remote: Make, sample: Image
) -> None:
    known = Credential(identity_token=REFRESH)
    there = remote(registry_token, repository, credentials=lambda *_: known)
    assert there.push(sample).digest == sample.digest


def test_an_unknown_authority_is_named(
    registry_tls: Service, repository: str, remote: Make, sample: Image
) -> None:
    stranger = dataclasses.replace(registry_tls, ca_file=None)
    with pytest.raises(RegistryError, match=r"certificate of .* is not trusted") as caught:
        remote(stranger, repository, insecure=False).push(sample)
    assert f"certs.d/{registry_tls.address}/ca.crt" in str(caught.value)
    assert not caught.value.temporary


def test_plain_http_to_a_tls_port_and_back_are_one_clear_error(
    registry_tls: Service, registry_open: Service, repository: str, remote: Make
) -> None:
    sample = image(layer({"code": b"print()"}))
    with pytest.raises(RegistryError, match=r"400 Bad Request .*: it speaks TLS"):
        remote(registry_tls, repository, ca_file=None, insecure=True).push(sample)
    with pytest.raises(RegistryError, match=r"certificate of .* is not trusted"):
        remote(registry_tls, repository, ca_file=None).push(sample)
    with pytest.raises(RegistryError, match="does not speak TLS"):
        remote(registry_open, repository, insecure=False).push(sample)


def test_a_large_blob_passes_through_a_little_memory(
    registry_open: Service, repository: str, remote: Make, tmp_path: Path
) -> None:
    size = 96 << 20
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, size)
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    blob = Descriptor(LAYER_GZIP, f"sha256:{digest.hexdigest()}", size)
    it = image(Layer(blob, blob.digest, path))
    tracemalloc.start()
    try:
        remote(registry_open, repository).push(it)
        far = remote(registry_open, repository).image(it.digest)
        remote(registry_open, repository).fetch_blob(blob, tmp_path / "fetched")
        # From one repository to another, without a mount: streamed.
        streamed = dataclasses.replace(far.layers[0], origin=Reference("elsewhere", "x"))
        remote(
            registry_open,
            f"{repository}/copy",
            cache=tmp_path / "empty",
            peer=lambda _origin: remote(registry_open, repository),
        ).push(image(streamed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "fetched").stat().st_size == size
    assert peak < 24 << 20
