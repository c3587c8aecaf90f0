"""A user pushes, another runs the same digest again: real processes, real registries, other tools."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.registry import Remote
from tests.clusters.registry.cluster import Registries, Service

from .users import MODULE, User

pytestmark = pytest.mark.registry


@pytest.fixture(params=["open", "tls", "token"])
def service(request: pytest.FixtureRequest, registry: Registries) -> Service:
    found: Service = getattr(registry, request.param)
    return found


def unpacked(reference: str, service: Service, user: User, tmp_path: Path) -> Path:
    """The root file system as skopeo pulls and umoci unpacks it; skopeo has only what docker has."""
    layout = tmp_path / "pulled"
    source = ["--authfile", str(user.home / "docker" / "config.json")]
    if service.ca_file is None:
        source.append("--src-tls-verify=false")
    else:
        source += ["--src-cert-dir", str(user.home / "config/containers/certs.d" / service.address)]
    copy = ["skopeo", "--insecure-policy", "copy", *source, f"docker://{reference}"]
    subprocess.run([*copy, f"oci:{layout}:it"], check=True, capture_output=True)
    bundle = tmp_path / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--rootless", "--image", f"{layout}:it", str(bundle)],
        check=True,
        capture_output=True,
    )
    return bundle / "rootfs"


def test_what_is_pushed_is_pulled_by_other_tools(
    service: Service, repository: str, author: User, tmp_path: Path
) -> None:
    author.login(service)
    name = f"{service.address}/{repository}"

    pushed = author.cxc("push", "work.py:square", name).stdout.strip()

    digest = author.cxc("build", "work.py:square").stdout.strip()
    assert pushed == f"{name}@{digest}"
    assert author.cxc("push", digest, f"{name}/other").stdout.strip() == f"{name}/other@{digest}"
    output = author.python(
        f"import work; print(work.square.push({name + '/third'!r}))"
    ).stdout.strip()
    assert output == f"{name}/third@{author.cxc('build', 'work:square').stdout.strip()}"
    root = unpacked(pushed, service, author, tmp_path)
    assert "return x * x" in (root / "opt/clustrix/code/work.py").read_text()


def test_another_user_runs_the_same_digest(
    service: Service, repository: str, author: User, stranger: User
) -> None:
    author.login(service)
    stranger.login(service)
    name = f"{service.address}/{repository}"
    run = author.cxc("run", "--detach", "work.py:square", "7").stdout.strip()
    assert author.cxc("result", run).stdout == "49\n"
    digest = json.loads(author.cxc("ps", "--json").stdout)[0]["image"]
    reference = author.cxc("push", digest, name).stdout.strip()

    trusted = stranger.cxc("rerun", "--trust", reference)

    assert trusted.stdout == "49\n"
    assert "working on 7" in trusted.stderr
    doubtful = stranger.cxc("rerun", reference, code=1)
    assert doubtful.stdout == ""
    errors = [line for line in doubtful.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--trust" in doubtful.stderr
    newest = json.loads(stranger.cxc("ps", "--json").stdout)[0]
    assert newest["image"] == digest
    kept = stranger.home / "kept.pickle"
    stranger.cxc("result", newest["run"], "--output", str(kept))
    assert pickle.loads(kept.read_bytes()) == 49
    assert "--trust" in stranger.cxc("result", newest["run"], code=1).stderr
    assert stranger.cxc("result", "--trust", newest["run"]).stdout == "49\n"
    # The very same image from the layout, by the start of its digest.
    assert stranger.cxc("rerun", "--trust", digest[7:19]).stdout == "49\n"


def test_the_authority_of_a_registry_is_found_where_docker_and_podman_look(
    registry_tls: Service, repository: str, author: User
) -> None:
    name = f"{registry_tls.address}/{repository}"
    author.login(registry_tls)
    own = author.home / "config" / "containers" / "certs.d" / registry_tls.address / "ca.crt"
    authority = own.read_bytes()
    own.unlink()

    refused = author.cxc("push", "work.py:square", name, code=1).stderr
    assert refused.startswith(f"error: the certificate of {registry_tls.address} is not trusted")
    assert f"certs.d/{registry_tls.address}/ca.crt" in refused
    bundle = author.home / "authorities.pem"
    bundle.write_bytes(authority)
    author.cxc("push", "work.py:square", name, SSL_CERT_FILE=str(bundle))
    for place in ("config/docker", "docker"):
        file = author.home / place / "certs.d" / registry_tls.address / "any.crt"
        file.parent.mkdir(parents=True)
        file.write_bytes(authority)
        author.cxc("push", "work.py:square", name)
        file.write_bytes(b"no certificate")
        assert str(file) in author.cxc("push", "work.py:square", name, code=1).stderr
        file.unlink()


def requests(service: Service, repository: str) -> list[str]:
    """The methods of the requests to one repository so far."""
    start = f"/v2/{repository}/"
    split = [line.split(" ") for line in service.requests()]
    return [method for method, path, _ in split if path.startswith(start)]


def test_a_one_line_edit_is_five_requests_and_new_arguments_are_seven(
    registry_open: Service, repository: str, author: User, remote: Callable[..., Remote]
) -> None:
    name = f"{registry_open.address}/{repository}"
    author.cxc("push", "work.py:square", name)
    before = len(requests(registry_open, repository))

    author.write(MODULE.replace("x * x", "x * x * 1"))
    pushed = author.cxc("push", "work.py:square", name).stdout.strip()

    assert sorted(requests(registry_open, repository)[before:]) == ["POST"] * 2 + ["PUT"] * 3
    image = remote(registry_open, repository).image(pushed.rpartition("@")[2])
    sent = len(image.manifest) + len(image.config) + image.layers[-1].size
    # Code 4.6 KB (nine blocks of a tar, stored), config 1.4 KB, manifest 1.3 KB.
    assert sent < 7_500
    author.write(MODULE.replace("x * x", "x * x * 1 * 1"))
    run = author.cxc("run", "--detach", "work.py:square", "7").stdout.strip()
    author.cxc("result", run)
    digest = json.loads(author.cxc("ps", "--json").stdout)[0]["image"]
    before = len(requests(registry_open, repository))
    author.cxc("push", digest, name)
    assert sorted(requests(registry_open, repository)[before:]) == ["POST"] * 3 + ["PUT"] * 4
