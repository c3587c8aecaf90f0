from __future__ import annotations

import hashlib
import os
import posixpath
import subprocess
import sys
import zipfile
from pathlib import Path

import installer
import pytest
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile as WheelSource

from clustrix_containers.errors import ImageError
from clustrix_containers.image.layers import pack
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.packages.wheels.wheel import parse_record
from tests.validation import validate

from .making import MINOR, make_wheel, packable, tree

SITE = f"opt/venv/lib/python{MINOR}/site-packages"
EVERYTHING = {
    "pkg/__init__.py": b"def main():\n    print('hello from pkg')\n",
    "pkg/stored.bin": bytes(range(256)) * 300,
    "pkg/empty.py": b"",
    'pkg/data/\u00fcber name, "quoted".txt': b"text " * 1000,
    "pkg/tool.sh": b"#!/bin/sh\n",
    "pkg-1.0.dist-info/entry_points.txt": (
        b"[console_scripts]\nhello = pkg:main\n[gui_scripts]\nhello-gui = pkg:main [extra]\n"
    ),
    "pkg-1.0.data/scripts/script": b"#!python -s\nprint('a script')\n",
    "pkg-1.0.data/scripts/binary": b"\x7fELF not really",
    "pkg-1.0.data/purelib/pure.py": b"x = 1\n",
    "pkg-1.0.data/platlib/plat.py": b"x = 1\n",
    "pkg-1.0.data/data/share/man/man1/pkg.1": b"manual",
    "pkg-1.0.data/headers/pkg.h": b"int x;\n",
}


def layer_of(path: Path, cache: Path) -> Layer:
    made = pack([packable(path)], MINOR, cache=cache)
    validate(Image((made,)))
    return made


def installed_by_installer(path: Path, root: Path) -> None:
    site = root / SITE
    schemes = {
        "purelib": str(site),
        "platlib": str(site),
        "headers": str(root / f"opt/venv/include/site/python{MINOR}/pkg"),
        "scripts": str(root / "opt/venv/bin"),
        "data": str(root / "opt/venv"),
    }
    destination = SchemeDictionaryDestination(
        schemes, interpreter="/opt/venv/bin/python", script_kind="posix"
    )
    with WheelSource.open(path) as source:
        installer.install(source, destination, {"INSTALLER": b"clustrix\n"})


def test_the_tree_is_the_one_that_installer_makes(tmp_path: Path, cache: Path) -> None:
    path = make_wheel(
        tmp_path,
        "pkg",
        EVERYTHING,
        executable=["pkg/tool.sh", "pkg-1.0.data/scripts/script", "pkg-1.0.data/scripts/binary"],
        stored=["pkg/stored.bin"],
    )
    unpack(layer_of(path, cache), tmp_path / "ours")
    installed_by_installer(path, tmp_path / "theirs")
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    # Scripts from entry points have a text of our own; RECORD has its hash.
    generated = {"opt/venv/bin/hello", "opt/venv/bin/hello-gui"}
    record = f"{SITE}/pkg-1.0.dist-info/RECORD"
    for name in set(ours) - generated - {record}:
        assert ours[name] == theirs[name], name
    for name in generated:
        assert ours[name][:2] == theirs[name][:2]
        for one in (ours[name][2], theirs[name][2]):
            assert isinstance(one, bytes)
            assert one.startswith(b"#!/opt/venv/bin/python\n")
    rows, other = (parse_record(str(found[record][2], "utf-8")) for found in (ours, theirs))  # type: ignore[arg-type]
    other = {posixpath.normpath(name): row for name, row in other.items()}
    assert set(rows) == set(other)
    for name, row in rows.items():
        if row.hash and not name.startswith("../../../bin/hello"):
            assert row == other[name], name
    for name, row in rows.items():
        if row.hash:
            content = (tmp_path / "ours" / SITE / name).read_bytes()
            assert row.sha256 == hashlib.sha256(content).hexdigest()
            assert row.size == len(content)


def test_no_compressor_runs(tmp_path: Path, cache: Path) -> None:
    path = make_wheel(tmp_path, "pkg", EVERYTHING)
    made = layer_of(path, cache)
    assert isinstance(made.blob, Path)
    blob = made.blob.read_bytes()
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        item = archive.getinfo('pkg/data/\u00fcber name, "quoted".txt')
        raw.seek(item.header_offset)
        local = raw.read(30)
        raw.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
        assert raw.read(item.compress_size) in blob


def test_one_digest_in_any_process(tmp_path: Path, cache: Path) -> None:
    path = make_wheel(tmp_path, "pkg", EVERYTHING)
    here = layer_of(path, cache).digest
    script = (
        "import sys, pathlib\n"
        "from clustrix_containers.image.layers import pack\n"
        "from tests.unit.image.making import packable\n"
        "wheel, cache = map(pathlib.Path, sys.argv[1:])\n"
        f"print(pack([packable(wheel)], {MINOR!r}, cache=cache).digest)"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "other")]
    env = {**os.environ, "PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    done = subprocess.run(command, env=env, capture_output=True, check=True, text=True, umask=0o77)
    assert done.stdout.strip() == here


def test_made_once(tmp_path: Path, cache: Path) -> None:
    path = make_wheel(tmp_path, "pkg", EVERYTHING)
    made = layer_of(path, cache)
    item = packable(path)
    path.write_bytes(b"gone")
    assert pack([item], MINOR, cache=cache) == made


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "touched", "record"])
def test_a_damaged_blob_is_made_again(damage: str, tmp_path: Path, cache: Path) -> None:
    path = make_wheel(tmp_path, "pkg", EVERYTHING)
    made = layer_of(path, cache)
    assert isinstance(made.blob, Path)
    good = made.blob.read_bytes()
    if damage == "truncated":
        os.truncate(made.blob, 100)
    elif damage == "flipped":
        made.blob.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
        os.utime(made.blob, ns=(1, 1))
    elif damage == "deleted":
        made.blob.unlink()
    elif damage == "touched":
        os.utime(made.blob, ns=(1, 1))
    else:
        (record,) = (cache / "layers").iterdir()
        record.write_bytes(record.read_bytes()[:30])
    again = layer_of(path, cache)
    assert again == made
    assert made.blob.read_bytes() == good
    assert not list((cache / "tmp").iterdir())


def test_large_files_are_streamed_in_every_form(tmp_path: Path, cache: Path) -> None:
    big = os.urandom(1 << 20) * 3
    files = {"pkg/deflated.bin": big, "pkg/stored.bin": big}
    path = make_wheel(tmp_path, "pkg", files, stored=["pkg/stored.bin"])
    unpack(layer_of(path, cache), tmp_path / "r")
    assert (tmp_path / "r" / SITE / "pkg/deflated.bin").read_bytes() == big
    assert (tmp_path / "r" / SITE / "pkg/stored.bin").read_bytes() == big


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"../evil.py": b""}, {}, "not a name"),
        ({"pkg/../../evil.py": b""}, {}, "not a name"),
        ({"/etc/evil": b""}, {}, "not a name"),
        ({"pkg-1.0.data/scripts/../../evil": b""}, {}, "not a name"),
        ({"pkg-1.0.data/nowhere/x": b""}, {}, "no known .data directory"),
        ({"pkg-1.0.data/scripts": b""}, {}, "no known .data directory"),
        ({"a.py": b"1"}, {"extra": [("a.py", b"2")]}, "two different files called 'a.py'"),
        ({"a.py": b"1", "pkg-1.0.data/purelib/a.py": b"2"}, {}, "two different files"),
        ({"a.py": b"1", "a.py/b": b"2"}, {}, "is not a directory"),
        ({"a.py": b"1"}, {"record": {"a.py": "sha256=" + "A" * 43}}, "is not what RECORD says"),
        (
            {"pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\n../x = a:b\n"},
            {},
            "not an entry point",
        ),
        (
            {"pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\nx = a:b;import os\n"},
            {},
            "not an entry point",
        ),
        ({"other-1.0.dist-info/METADATA": b""}, {}, "has 2 .dist-info directories"),
        ({"pkg/.wh.x": b""}, {}, "deletion"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_wheels(
    files: dict[str, bytes], options: dict[str, object], message: str, tmp_path: Path, cache: Path
) -> None:
    path = make_wheel(tmp_path, "pkg", files, **options)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=message):
        layer_of(path, cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", ["crc", "size", "stream", "header", "end", "name"])
def test_broken_zips(what: str, tmp_path: Path, cache: Path) -> None:
    path = make_wheel(tmp_path, "pkg", {"pkg/a.py": b"print(1)\n" * 100})
    with zipfile.ZipFile(path) as archive:
        item = archive.getinfo("pkg/a.py")
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02" + data[item.header_offset + 4 - 0 : item.header_offset + 4])
    while data[central + 46 : central + 54] != b"pkg/a.py":
        central = data.index(b"PK\x01\x02", central + 1)
    if what == "crc":
        data[central + 16] ^= 1
    elif what == "size":
        data[central + 24] ^= 1
    elif what == "stream":
        data[item.header_offset + 30 + 8 + 3] ^= 0xFF
    elif what == "header":
        data[item.header_offset] ^= 1
    elif what == "end":
        del data[-10:]
    else:
        path = path.rename(tmp_path / "pkg.whl")
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"pkg.*whl"):
        layer_of(path, cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_several_wheels_in_one_layer(tmp_path: Path, cache: Path) -> None:
    shared = {"tests/__init__.py": b""}
    paths = [
        make_wheel(tmp_path, "one", {"one.py": b"1", "LICENSE": b"one", **shared}),
        make_wheel(tmp_path, "two", {"two.py": b"2", "LICENSE": b"two", **shared}),
    ]
    made = pack([packable(path) for path in paths], MINOR, cache=cache)
    validate(Image((made,)))
    unpack(made, tmp_path / "r")
    site = tmp_path / "r" / SITE
    assert (site / "one.py").read_bytes() == b"1"
    assert (site / "LICENSE").read_bytes() == b"two", "the later's, as when both are installed"
