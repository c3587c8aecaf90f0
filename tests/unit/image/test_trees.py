from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from clustrix_containers.errors import ImageError
from clustrix_containers.image.layers import Packable, pack
from clustrix_containers.image.trees import find_installed, tree_entries
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.packages.installed import Installed
from clustrix_containers.packages.lock import Package
from clustrix_containers.packages.wheels.wheel import parse_record
from tests.validation import validate

from .making import MINOR, make_wheel, tree

SITE = f"opt/venv/lib/python{MINOR}/site-packages"
FILES = {
    "pkg/__init__.py": b"def main():\n    print('hello')\n",
    "pkg/tool.sh": b"#!/bin/sh\n",
    "pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\nhello = pkg:main\n",
    "pkg-1.0.data/scripts/script": b"#!python\nprint('a script')\n",
    "pkg-1.0.data/data/share/pkg/data": b"data",
}


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """A distribution that pip installed below a prefix, compiled."""
    wheel = make_wheel(tmp_path / "w", "pkg", FILES, executable=["pkg/tool.sh"])
    prefix = tmp_path / "prefix"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--disable-pip-version-check", "--no-warn-script-location", "--prefix", str(prefix)]
    subprocess.run([*command, *options, str(wheel)], check=True)
    return find_installed(
        "pkg", "1.0", [str(tmp_path / "nothing"), str(prefix / f"lib/python{MINOR}/site-packages")]
    )


def layer_of(installed: Installed, cache: Path) -> Layer:
    package = Package(installed.name, installed.version, None, "sha256:" + "0" * 64)
    return pack([Packable(package, installed)], MINOR, cache=cache)


def test_the_tree_is_the_installed_one(installed: Installed, tmp_path: Path, cache: Path) -> None:
    made = layer_of(installed, cache)
    validate(Image((made,)))
    unpack(made, tmp_path / "r")
    found = tree(tmp_path / "r")
    assert found[f"{SITE}/pkg/__init__.py"][2] == FILES["pkg/__init__.py"]
    assert found[f"{SITE}/pkg/tool.sh"][1]
    assert found["opt/venv/share/pkg/data"][2] == b"data"
    assert found["opt/venv/bin/script"][2] == b"#!/opt/venv/bin/python\nprint('a script')\n"
    assert b"from pkg import main" in bytes(found["opt/venv/bin/hello"][2])  # type: ignore[arg-type]
    assert not [name for name in found if name.endswith(".pyc") or "direct_url" in name]
    assert str(tmp_path).encode() not in b"".join(
        value[2] for value in found.values() if isinstance(value[2], bytes)
    )
    rows = parse_record(str(found[f"{SITE}/pkg-1.0.dist-info/RECORD"][2], "utf-8"))  # type: ignore[arg-type]
    assert {str((tmp_path / "r" / SITE / name).resolve()) for name in rows} == {
        str((tmp_path / "r" / name).resolve()) for name in found
    }
    for name, row in rows.items():
        content = (tmp_path / "r" / SITE / name).read_bytes()
        if not name.endswith("/RECORD"):
            assert row.sha256 == hashlib.sha256(content).hexdigest()


def test_actual_bytes_count(installed: Installed, tmp_path: Path, cache: Path) -> None:
    before = layer_of(installed, cache)
    assert layer_of(installed, cache) == before
    (installed.root / "pkg/__init__.py").write_bytes(b"patched = 1\n")
    after = layer_of(installed, cache)
    assert after.digest != before.digest
    unpack(after, tmp_path / "r")
    assert (tmp_path / "r" / SITE / "pkg/__init__.py").read_bytes() == b"patched = 1\n"


def test_a_missing_file_is_named(installed: Installed, cache: Path) -> None:
    (installed.root / "pkg/tool.sh").unlink()
    with pytest.raises(ImageError, match=r"pkg 1.0 is incomplete: 'pkg/tool.sh' is missing"):
        layer_of(installed, cache)


def test_another_version_is_named(installed: Installed) -> None:
    with pytest.raises(ImageError, match=r"pkg 2.0 of the lock is not installed here; 1.0 is"):
        find_installed("pkg", "2.0", [str(installed.root)])


def test_system_packages_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "old_thing").mkdir()
    (tmp_path / "old_thing/__init__.py").write_bytes(b"")
    (tmp_path / "old_thing/__pycache__").mkdir()
    (tmp_path / "old_thing/__pycache__/x.pyc").write_bytes(b"")
    (tmp_path / "single.py").write_bytes(b"")
    info = tmp_path / "Old_Thing-3.1.egg-info"
    info.mkdir()
    (info / "top_level.txt").write_text("old_thing\nsingle\n")
    found = tree_entries(find_installed("old-thing", "3.1", [str(tmp_path)]), MINOR)
    assert [entry.name.removeprefix(SITE + "/") for entry in found] == [
        "Old_Thing-3.1.egg-info/INSTALLER",
        "Old_Thing-3.1.egg-info/top_level.txt",
        "old_thing/__init__.py",
        "single.py",
    ]
    (info / "top_level.txt").write_text("gone\n")
    with pytest.raises(ImageError, match="has no list of its files"):
        tree_entries(Installed("old-thing", "3.1", info), MINOR)
