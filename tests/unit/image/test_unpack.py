from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.archive import Entry, link, write_layer
from clustrix_containers.oci.model import LAYER_ZSTD, Descriptor, Layer, sha256
from clustrix_containers.oci.reading import read_files
from clustrix_containers.oci.unpack import unpack

from .making import member, tar_layer, tree

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_a_layer_of_ours(cache: Path, tmp_path: Path) -> None:
    entries = [
        Entry("opt/venv/bin/x", b"#!/bin/sh\n", 0o755),
        Entry("opt/venv/lib/ü", b"1"),
        link("opt/venv/lib64", "lib"),
    ]
    unpack(write_layer(entries, cache=cache, form="spliced", kind="code", title=""), tmp_path / "r")
    assert tree(tmp_path / "r") == {
        "opt/venv/bin/x": ("file", 0o111, b"#!/bin/sh\n"),
        "opt/venv/lib/ü": ("file", 0, b"1"),
        "opt/venv/lib64": ("link", 0, "lib"),
    }


def test_whiteouts_and_replacements(tmp_path: Path) -> None:
    root = tmp_path / "r"
    lower = [
        (member("d", type=DIR), b""),
        *((member(f"d/{name}"), b"old") for name in ("kept", "gone", "over")),
        (member("o/deep/x"), b"old"),
        (member("o/y"), b"old"),
        (member("wasdir/f"), b""),
        (member("wasfile"), b""),
    ]
    upper = [
        (member("d/.wh.gone"), b""),
        (member("d/.wh.never"), b""),
        (member("d/over"), b"new"),
        (member("o/new"), b"new"),
        (member("o/.wh..wh..opq"), b""),
        (member("wasdir"), b"now a file"),
        (member("wasfile", type=DIR), b""),
    ]
    unpack(tar_layer(lower), root)
    unpack(tar_layer(upper), root)
    assert {name: value[2] for name, value in tree(root).items()} == {
        "d/kept": b"old", "d/over": b"new", "o/new": b"new", "wasdir": b"now a file",
    }  # fmt: skip
    assert (root / "wasfile").is_dir()


def test_links_are_followed_as_in_a_container(tmp_path: Path) -> None:
    root = tmp_path / "r"
    layer = tar_layer(
        [
            (member("usr/bin", type=DIR), b""),
            (member("bin", type=LINK, linkname="usr/bin"), b""),
            (member("run", type=LINK, linkname="/var/run"), b""),
            (member("bin/tool", mode=0o755), b"t"),
            (member("run/pid"), b"1"),
            (member("bin/again", type=HARD, linkname="bin/tool"), b""),
        ]
    )
    unpack(layer, root)
    assert (root / "usr/bin/tool").read_bytes() == b"t"
    assert (root / "usr/bin/again").samefile(root / "usr/bin/tool")
    assert (root / "var/run/pid").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("members", "entry"),
    [
        ([member("../evil")], "../evil"),
        ([member("a/../../evil")], "a/../../evil"),
        ([member("/etc/evil")], "/etc/evil"),
        ([member("up", type=LINK, linkname="../.."), member("up/evil")], "up/evil"),
        (
            [
                member("a", type=LINK, linkname="b"),
                member("b", type=LINK, linkname="a"),
                member("a/evil"),
            ],
            "a/evil",
        ),
        ([member("h", type=HARD, linkname="../secret")], "h"),
        ([member("h", type=HARD, linkname="nothing")], "h"),
        ([member("f"), member("f/evil")], "f/evil"),
        ([member("d/.wh...")], "d/.wh..."),
    ],
)
def test_hostile_entries_are_refused(
    members: list[tarfile.TarInfo], entry: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    layer = tar_layer((one, b"") for one in members)
    with pytest.raises(ImageError) as caught:
        unpack(layer, tmp_path / "r" / "s")
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.layer == layer.digest
    assert error.entry == entry
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "secret"]


name = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map(
    "/".join
)
entries = st.tuples(
    name,
    st.sampled_from([tarfile.REGTYPE, DIR, LINK, HARD, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
    name | st.sampled_from(["/", "/outside", "../../outside", "../outside"]),
    st.sampled_from([0o644, 0o755, 0o000, 0o4755]),
)


@settings(max_examples=300)
@given(st.lists(st.lists(entries, max_size=8), min_size=1, max_size=3))
def test_nothing_is_ever_written_outside(
    layers: list[list[tuple[str, bytes, str, int]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder, "outside")
        outside.mkdir()
        (outside / "a").write_bytes(b"precious")
        for content in layers:
            layer = tar_layer(
                (
                    member(path, type=kind, linkname=target, mode=mode),
                    b"x" if kind == tarfile.REGTYPE else b"",
                )
                for path, kind, target, mode in content
            )
            try:
                unpack(layer, Path(folder, "root"))
            except ImageError:
                break
        assert {path.name for path in Path(folder).iterdir()} <= {"outside", "root"}
        assert [path.name for path in outside.iterdir()] == ["a"]
        assert (outside / "a").read_bytes() == b"precious"
        assert (outside / "a").stat().st_nlink == 1


def test_wrong_bytes_are_found(cache: Path, tmp_path: Path) -> None:
    layer = tar_layer([(member("a"), b"x" * 5000)])
    assert isinstance(layer.blob, bytes)
    other = tar_layer([(member("a"), b"y" * 5000)])
    with pytest.raises(DigestMismatch, match="the blob of layer"):
        unpack(replace(layer, blob=other.blob), tmp_path / "1")
    with pytest.raises(DigestMismatch, match="the tar of layer"):
        unpack(replace(layer, diff_id=other.diff_id), tmp_path / "2")
    for cut in (2, 11, len(layer.blob) - 9):
        with pytest.raises(ImageError):
            unpack(replace(layer, blob=layer.blob[:cut]), tmp_path / "3")
    with pytest.raises(DigestMismatch):
        unpack(replace(layer, blob=layer.blob + b"\0" * 64), tmp_path / "4")


def test_a_layer_that_is_elsewhere(tmp_path: Path) -> None:
    layer = tar_layer([(member("a"), b"x")])
    with pytest.raises(ImageError, match="not on this machine"):
        unpack(replace(layer, blob=None), tmp_path / "r")


CONTENT = bytes(range(256)) * 2000
SKIPPABLE = b"\x5e\x2a\x4d\x18\x05\0\0\0other"
"""A zstd frame that decoders skip (RFC 8878, 3.1.2), as pzstd and zstd:chunked write."""


def zstd(data: bytes, *options: str) -> bytes:
    command = ["zstd", "-q", "-c", *options]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def compressed(how: str) -> Layer:
    """A layer whose blob is compressed in another way than with gzip."""
    layer = tar_layer([(member("a"), CONTENT)])
    assert isinstance(layer.blob, bytes)
    plain = gzip.decompress(layer.blob)
    blob = {
        "plain": lambda: plain,
        "zstd": lambda: zstd(plain, "--check"),
        "without a checksum": lambda: zstd(plain, "--no-check", "-19"),
        "two frames": lambda: zstd(plain[:9999]) + zstd(plain[9999:]),
        "skippable frames": lambda: SKIPPABLE + zstd(plain[:9]) + SKIPPABLE + zstd(plain[9:]),
        "skippable at the end": lambda: zstd(plain) + SKIPPABLE,
    }[how]()
    descriptor = Descriptor(LAYER_ZSTD, sha256(blob), len(blob))
    return replace(layer, blob=blob, descriptor=descriptor)


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "zstd",
        "without a checksum",
        "two frames",
        "skippable frames",
        "skippable at the end",
    ],
)
def test_other_compressions_than_gzip(how: str, tmp_path: Path) -> None:
    layer = compressed(how)
    unpack(layer, tmp_path / "r")
    assert (tmp_path / "r/a").read_bytes() == CONTENT
    assert read_files(layer) == {"a": CONTENT}


def damaged(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes(byte ^ 0xFF for byte in blob[at : at + 4]) + blob[at + 4 :]


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_damaged_and_truncated_layers(how: str, tmp_path: Path) -> None:
    layer = tar_layer([(member("a"), CONTENT)]) if how == "gzip" else compressed(how)
    blob = layer.blob
    assert isinstance(blob, bytes)
    # The last four bytes are gzip's length, or zstd's checksum.
    places = [4, 30, len(blob) // 2, len(blob) - 4]
    broken = [blob[:at] for at in places] + [damaged(blob, at) for at in places[1:]]
    for number, other in enumerate(broken):
        for read in (read_files, lambda it, to=tmp_path / str(number): unpack(it, to)):
            with pytest.raises(ImageError, match=r"damaged or truncated|digest|not a tar"):
                read(replace(layer, blob=other))
    with pytest.raises(ImageError, match=f"layer {layer.digest} is damaged or truncated") as caught:
        unpack(replace(layer, blob=broken[-1]), tmp_path / "r")
    assert caught.value.layer == layer.digest


def test_more_in_a_frame_than_the_layer_has(tmp_path: Path) -> None:
    """As with gzip: the digests of blob and tar decide, whatever a frame declares."""
    layer = compressed("zstd")
    assert isinstance(layer.blob, bytes)
    longer = layer.blob + zstd(b"\0" * 100_000)
    with pytest.raises(DigestMismatch, match="the blob of layer"):
        unpack(replace(layer, blob=longer), tmp_path / "1")
    descriptor = replace(layer.descriptor, digest=sha256(longer), size=len(longer))
    with pytest.raises(DigestMismatch, match="the tar of layer"):
        unpack(replace(layer, blob=longer, descriptor=descriptor), tmp_path / "2")
    with pytest.raises(ImageError, match="is damaged or truncated"):
        unpack(replace(layer, blob=layer.blob + b"no frame"), tmp_path / "3")


def test_modes_as_an_ordinary_user(tmp_path: Path) -> None:
    layers = [
        tar_layer(
            [
                (member("ro", type=DIR, mode=0o555), b""),
                (member("ro/a", mode=0o000), b"1"),
                (member("su", mode=0o4755), b"1"),
                (member("tmp", type=DIR, mode=0o1777), b""),
                (member("dev/null", type=tarfile.CHRTYPE), b""),
            ]
        ),
        tar_layer([(member("ro/b"), b"2"), (member("ro/.wh.a"), b"")]),
    ]
    root = tmp_path / "root"
    script = (
        "import pickle,sys,pathlib;from clustrix_containers.oci.unpack import unpack\n"
        "for layer in pickle.load(sys.stdin.buffer): unpack(layer, pathlib.Path(sys.argv[1]))"
    )
    # A new user namespace without a mapping: whoever runs this has no capabilities left.
    command = ["unshare", "--user", sys.executable, "-c", script, str(root)]
    subprocess.run(command, input=pickle.dumps(layers), check=True)
    assert {name: value[2] for name, value in tree(root).items()} == {"ro/b": b"2", "su": b"1"}
    assert (root / "su").stat().st_mode & 0o7777 == 0o755
    assert (root / "ro").stat().st_mode & 0o7777 == 0o755
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
