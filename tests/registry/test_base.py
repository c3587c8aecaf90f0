"""A base that lies in a registry: only its manifest and config are read, its layers stay there."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.image.base import interpreter
from clustrix_containers.oci.archive import Entry, write_layer
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Remote
from tests.clusters.registry.cluster import Service

from .users import ROOT, User

pytestmark = pytest.mark.registry
Make = Callable[..., Remote]
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"

WORK = """
import clustrix_containers as cx


@cx.function(base={base!r}, python={python!r})
def where(x):
    import subprocess
    import sys

    import yaml

    inner = subprocess.run([sys.executable, "-c", "import yaml; print(yaml.__version__)"],
                           capture_output=True, text=True, check=True)
    assert inner.stdout.strip() == yaml.__version__
    return [x, sys.executable, sys.prefix, yaml.__file__.startswith(sys.prefix)]
"""
ANSWER = [5, "/opt/venv/bin/python", "/opt/venv", True]


@pytest.fixture
def plain(shared_cache: Path) -> Image:
    """The packed interpreter as an image that nobody of ours has made."""
    packed = interpreter.packed(shared_cache)
    layers = tuple(
        replace(layer, descriptor=replace(layer.descriptor, annotations={}))
        for layer in packed.layers
    )
    return replace(packed, layers=layers, settings={"Env": [f"PYTHON_VERSION={MINOR}.0"]})


def calls(service: Service, repository: str, *methods: str) -> list[str]:
    """``METHOD what`` of what a repository was asked and did, in the registry's own words."""
    start = f"/v2/{repository}/"
    split = [line.split(" ") for line in service.requests()]
    return [
        f"{method} {path.removeprefix(start)}"
        for method, path, status in split
        if path.startswith(start) and (not methods or method in methods) and status < "400"
    ]


def test_building_reads_manifest_and_config_and_pushing_mounts(
    registry_open: Service, repository: str, author: User, remote: Make, plain: Image
) -> None:
    base = f"{repository}/base"
    digest = remote(registry_open, base).push(plain, "v1").digest
    before = len(calls(registry_open, base))
    name = f"{registry_open.address}/{base}@{digest}"
    author.write(WORK.format(base=name, python=f"/opt/python/bin/python{MINOR}"))

    author.cxc("build", "work.py:where")

    config = plain.config_descriptor.digest
    assert calls(registry_open, base)[before:] == [f"GET manifests/{digest}", f"GET blobs/{config}"]
    pushed = author.cxc("push", "work.py:where", f"{registry_open.address}/{repository}/runs")
    assert not [
        it for it in calls(registry_open, base)[before:] if config not in it and "blob" in it
    ]
    sent = remote(registry_open, f"{repository}/runs").image(pushed.stdout.strip())
    layers = [layer.digest for layer in plain.layers]
    assert [layer.digest for layer in sent.layers][: len(layers)] == layers
    posts = calls(registry_open, f"{repository}/runs", "POST")
    mounted = [it for it in posts if "mount=" in it]
    assert sum(it in post for post in mounted for it in layers) == len(layers)
    puts = calls(registry_open, f"{repository}/runs", "PUT")
    assert not [put for put in puts for it in layers if it.removeprefix("sha256:") in put]


def test_pushing_elsewhere_streams_the_layers_once(
    registry_open: Service,
    registry_tls: Service,
    repository: str,
    author: User,
    remote: Make,
    plain: Image,
    tmp_path: Path,
) -> None:
    author.login(registry_tls)
    # What another test has pushed there already would be mounted: this layer is new.
    content = Entry("opt/python/new", secrets.token_bytes(100_000))
    new = write_layer([content], cache=tmp_path / "c", form="stored", kind="base", title="new")
    base = plain.append(new)
    digest = remote(registry_open, repository).push(base, "v1").digest
    before = len(calls(registry_open, repository))
    name = f"{registry_open.address}/{repository}@{digest}"
    author.write(WORK.format(base=name, python=f"/opt/python/bin/python{MINOR}"))

    for target in ("one", "two"):
        author.cxc("push", "work.py:where", f"{registry_tls.address}/{repository}/{target}")

    fetched = calls(registry_open, repository)[before:]
    assert fetched.count(f"GET blobs/{new.digest}") == 1
    for layer in plain.layers:
        assert fetched.count(f"GET blobs/{layer.digest}") <= 1


def test_running_here_fetches_the_layers_once_and_works(
    registry_token: Service,
    repository: str,
    stranger: User,
    remote: Make,
    plain: Image,
    shared_cache: Path,
) -> None:
    digest = remote(registry_token, repository).push(plain, "v1").digest
    stranger.login(registry_token)
    name = f"{registry_token.address}/{repository}:v1"
    stranger.write(WORK.format(base=name, python=f"/opt/python/bin/python{MINOR}"))

    first = stranger.cxc("run", "--json", "work.py:where", "5")
    second = stranger.cxc("run", "--json", "work.py:where", "5")

    assert json.loads(first.stdout) == json.loads(second.stdout) == ANSWER
    fetched = calls(registry_token, repository, "GET")
    for layer in plain.layers:
        assert fetched.count(f"GET blobs/{layer.digest}") == 1
    done = stranger.python(
        "import work; from clustrix_containers.runs import plan;"
        "f = work.where; print(plan.plan(f.__clustrix_function__, f._options).lock.base)"
    )
    assert done.stdout.strip() == f"{registry_token.address}/{repository}@{digest}"
    # What has run is in the layout; pushed from there, it takes its base from where that lies.
    image = json.loads(stranger.cxc("ps", "--json").stdout)[0]["image"]
    stranger.cxc("push", image, f"{registry_token.address}/{repository}/runs")
    posts = calls(registry_token, f"{repository}/runs", "POST")
    for layer in plain.layers:
        assert [it for it in posts if layer.digest in it and "mount=" in it]


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slim base image as ``make image-slim`` makes it."""
    layout = tmp_path_factory.mktemp("images") / "slim"
    suite = "trixie" if MINOR == "3.13" else "bookworm"
    subprocess.run(
        [ROOT / "images" / "build.sh", "slim"],
        env={**os.environ, "OUT": str(layout), "SUITE": suite},
        check=True,
        capture_output=True,
    )
    return layout


def test_the_slim_image_that_skopeo_pushed_is_a_base(
    registry_open: Service, repository: str, author: User, slim: Path
) -> None:
    name = f"{registry_open.address}/{repository}:slim"
    copy = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"]
    subprocess.run([*copy, f"oci:{slim}:slim", f"docker://{name}"], check=True, capture_output=True)
    author.write(WORK.format(base=name, python=None))

    if MINOR in ("3.11", "3.13"):
        done = author.cxc("run", "--json", "work.py:where", "5")
        assert json.loads(done.stdout) == ANSWER
    else:
        assert f"this is Python {MINOR}" in author.cxc("run", "work.py:where", "5", code=1).stderr


@pytest.mark.parametrize(
    ("env", "python", "message", "hint"),
    [
        (["PYTHON_VERSION=3.7.1"], None, f"has Python 3.7.1, and this is Python {MINOR}", "base="),
        ([], None, "cannot find the Python of", "python="),
        ([], "python3", "not the path of a Python", "/usr/bin/python3.11"),
    ],
)
def test_a_base_that_cannot_be_used_is_one_error(
    registry_open: Service,
    repository: str,
    author: User,
    remote: Make,
    plain: Image,
    env: list[str],
    python: str | None,
    message: str,
    hint: str,
) -> None:
    remote(registry_open, repository).push(replace(plain, settings={"Env": env}), "v1")
    author.write(WORK.format(base=f"{registry_open.address}/{repository}:v1", python=python))

    done = author.cxc("run", "work.py:where", "5", code=1)

    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert hint in done.stderr
    assert author.remains() == []
