from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.capture.elf import read_elf
from clustrix_containers.errors import ImageError
from clustrix_containers.image.base import LABEL_GLIBC, LABEL_INTERPRETER, as_base
from clustrix_containers.image.base.interpreter import packed
from clustrix_containers.image.base.libraries import check_wheel, find_libraries
from clustrix_containers.image.build import build
from clustrix_containers.oci.model import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    LAYER_GZIP,
    LAYER_ZSTD,
    Image,
    Platform,
    Reference,
    canonical,
    elf_architecture,
    sha256,
)
from clustrix_containers.registry import Layout
from clustrix_containers.worker.contract import LABEL_PYTHON
from tests.validation import validate

from .making import MINOR, bundle, lock


def test_the_packed_interpreter_keeps_the_rules(base: Image, shared_cache: Path) -> None:
    validate(base)
    assert base.settings["Labels"][LABEL_PYTHON] == platform.python_version()
    assert packed(shared_cache) == base
    assert base.size < 100 << 20


def test_the_packed_interpreter_runs_alone(base: Image, run_in: Callable[..., str]) -> None:
    script = """
import bz2, ctypes, hashlib, json, lzma, multiprocessing, os, pwd, readline, sqlite3, ssl, sys, zlib, zoneinfo
assert zoneinfo.ZoneInfo("Europe/Berlin").utcoffset(__import__("datetime").datetime(2026, 7, 1)).seconds == 7200
assert pwd.getpwuid(65534).pw_name == "nobody"
ctypes.CDLL("libstdc++.so.6")
assert os.stat("/tmp").st_mode & 0o7777 == 0o1777
outside = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None) and not m.__file__.startswith("/opt/python/")]
cached = [m for m in sys.modules.values() if getattr(m, "__cached__", None) and not os.path.exists(m.__cached__)]
print(json.dumps([sys.version_info[:2], sys.prefix, outside, [m.__name__ for m in cached], ssl.OPENSSL_VERSION]))
"""
    version, prefix, outside, uncached, _ = json.loads(
        run_in(base, f"/opt/python/bin/python{MINOR}", "-c", script)
    )
    assert version == list(sys.version_info[:2])
    assert prefix == "/opt/python"
    assert outside == []
    assert [name for name in uncached if not name.startswith("_sysconfigdata")] == []
    listing = run_in(base, "/bin/sh", "-c", "cd /; echo *; test -w /tmp && id -u")
    assert {"proc", "dev", "sys", "tmp", "etc", "usr", "opt", "0"} <= set(listing.split())


def test_elsewhere_than_on_linux(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ImageError, match="base="):
        packed(cache)


def test_elf_files_say_what_ldd_says() -> None:
    binary = Path(sys.executable).resolve()
    elf = read_elf(binary)
    assert elf is not None
    assert elf.interpreter is not None
    found = find_libraries([binary])
    said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
    expected = {
        name: Path(place).resolve()
        for name, arrow, place, *_ in (line.split() for line in said.splitlines() if "=>" in line)
    }
    assert {name: path.resolve() for name, path in found.paths.items()} == expected
    assert found.loader == elf.interpreter
    assert elf.architecture == Platform.host().architecture
    assert elf.glibc is None or elf.glibc <= tuple(map(int, platform.libc_ver()[1].split(".")))


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\2\1" + b"\xff" * 300]
)
def test_what_is_no_elf_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read_elf(tmp_path / "x") is None


def base_with(**labels: str) -> Image:
    return Image(
        (), Platform(), {"Labels": {name.replace("__", "-"): v for name, v in labels.items()}}
    )


@pytest.mark.parametrize(
    ("filename", "problem"),
    [
        ("a-1-py3-none-any.whl", None),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", None),
        ("a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_40_x86_64.whl", None),
        ("a-1-cp311-cp311-manylinux2014_x86_64.whl", None),
        ("a-1-cp311-cp311-linux_x86_64.whl", None),
        ("a-1-cp311-cp311-manylinux_2_40_x86_64.whl", "needs glibc 2.40, the base has glibc 2.31"),
        ("a-1-cp311-cp311-manylinux_2_17_aarch64.whl", "for aarch64, the base is x86_64"),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", "for musl"),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", "for macosx_11_0_arm64"),
        ("a-1-cp311-cp311-win_amd64.whl", "for win_amd64"),
    ],
)
def test_a_wheel_and_a_base(filename: str, problem: str | None) -> None:
    base = Image((), Platform(), {"Labels": {LABEL_GLIBC: "2.31"}})
    if problem is None:
        check_wheel(filename, base)
    else:
        with pytest.raises(ImageError, match=problem):
            check_wheel(filename, base)


NAME = "example.org/library/python:slim"


def on_shelf(env: list[str], layer_type: str = DOCKER_LAYER) -> Image:
    """An image of a registry, from its manifest and config."""
    blob = b"a layer that nobody reads"
    layer = {"mediaType": layer_type, "digest": sha256(blob), "size": len(blob)}
    config = canonical(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Env": env},
            "rootfs": {"type": "layers", "diff_ids": [sha256(b"diff")]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": sha256(config),
            "size": len(config),
        },
        "layers": [layer],
    }
    return Image.read(canonical(manifest), config, origin=Reference.parse(NAME))


def test_an_official_python_image() -> None:
    image = on_shelf(["PATH=/usr/local/bin:/bin", f"PYTHON_VERSION={MINOR}.4"])
    base = as_base(image, NAME)
    assert base.settings["Labels"] == {
        LABEL_INTERPRETER: f"/usr/local/bin/python{MINOR}",
        LABEL_PYTHON: f"{MINOR}.4",
    }
    (layer,) = base.layers
    assert layer.descriptor.media_type == LAYER_GZIP
    assert layer.origin == Reference.parse(NAME)
    assert layer.blob is None
    validate(base)


def test_a_base_with_zstd_layers_runs(
    base: Image, run_in: Callable[..., str], tmp_path: Path, cache: Path
) -> None:
    """Converted by skopeo, read from a layout, built upon, unpacked and run."""
    plain = replace(base, settings={"Env": base.settings["Env"]})
    Layout(tmp_path / "gzip").push(plain, "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--dest-compress-format", "zstd"]
    copy += [f"oci:{tmp_path}/gzip:v1", f"oci:{tmp_path}/zstd:v1"]
    subprocess.run(copy, check=True, capture_output=True)
    python = f"/opt/python/bin/python{MINOR}"
    found = as_base(Layout(tmp_path / "zstd").image("v1"), "example.org/base:v1", python=python)
    assert {layer.descriptor.media_type for layer in found.layers} == {LAYER_ZSTD}
    assert [layer.diff_id for layer in found.layers] == [layer.diff_id for layer in base.layers]
    blobs = tmp_path / "zstd/blobs/sha256"
    layers = tuple(
        replace(layer, blob=blobs / layer.digest.removeprefix("sha256:")) for layer in found.layers
    )
    image = build(bundle(), lock(), replace(found, layers=layers), cache=cache)
    validate(image)
    script = "import sys, m; print(sys.prefix, m.f(1))"
    path = "import sys; sys.path.insert(0, '/opt/clustrix/code')"
    assert run_in(image, "/opt/venv/bin/python", "-c", f"{path}; {script}") == "/opt/venv 2\n"


@pytest.mark.parametrize(
    "name", ["oci.image.layer.v1.tar+zstd", "docker.image.rootfs.diff.tar.zstd"]
)
def test_both_media_types_of_zstd_layers(name: str) -> None:
    image = on_shelf([f"PYTHON_VERSION={MINOR}.4"], f"application/vnd.{name}")
    (layer,) = as_base(image, NAME).layers
    assert layer.descriptor.media_type == LAYER_ZSTD


def test_a_layer_of_an_unknown_type() -> None:
    image = on_shelf([f"PYTHON_VERSION={MINOR}.4"], "application/x-squashfs")
    with pytest.raises(ImageError, match="unknown type 'application/x-squashfs'"):
        as_base(image, NAME)


@pytest.mark.parametrize(
    ("kernel", "name", "elf"),
    [("x86_64", "amd64", 62), ("aarch64", "arm64", 183), ("i686", "386", 3), ("armv7l", "arm", 40)],
)
def test_names_of_machines(kernel: str, name: str, elf: int) -> None:
    assert Platform("linux", name).machine == kernel
    assert elf_architecture(elf) == name
    assert Platform("linux", "other").machine == "other"


def test_a_base_that_says_where_its_python_is() -> None:
    image = on_shelf([])
    with pytest.raises(ImageError, match="cannot find the Python of"):
        as_base(image, NAME)
    with pytest.raises(ImageError, match="not the path of a Python"):
        as_base(image, NAME, python="python")
    base = as_base(image, NAME, python=f"/usr/bin/python{MINOR}")
    assert base.settings["Labels"][LABEL_INTERPRETER] == f"/usr/bin/python{MINOR}"


def test_another_minor_version_is_refused() -> None:
    image = on_shelf(["PYTHON_VERSION=3.7.1"])
    with pytest.raises(
        ImageError, match=rf"has Python 3.7.1, and this is Python {MINOR}"
    ) as caught:
        as_base(image, NAME)
    assert caught.value.base == "3.7.1"
