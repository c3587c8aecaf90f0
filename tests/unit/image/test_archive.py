from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import (
    Entry,
    EntryType,
    Form,
    Member,
    arrange,
    directory,
    header,
    link,
    write_layer,
)
from clustrix_containers.oci.gzip import Isal, Spliced, Stored
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.reading import read_files
from clustrix_containers.oci.store import BlobWriter
from clustrix_containers.worker.contract import LAYER_KIND, LAYER_TITLE
from tests.validation import validate

FORMS: tuple[Form, ...] = ("stored", "spliced", "isal")

part = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80
).filter(lambda text: text not in (".", "..") and not text.startswith(".wh."))
names = st.lists(part, min_size=1, max_size=4).map(lambda parts: "opt/clustrix/" + "/".join(parts))
files = st.dictionaries(names, st.binary(max_size=2000), max_size=8).filter(
    lambda found: not any(a != b and a.startswith(b + "/") for a in found for b in found)
)


def layer(entries: list[Entry], cache: Path, form: Form = "stored") -> Layer:
    return write_layer(entries, cache=cache, form=form, kind="code", title="a title")


def blob(made: Layer) -> bytes:
    return made.blob if isinstance(made.blob, bytes) else Path(str(made.blob)).read_bytes()


@settings(max_examples=60)
@given(files, st.sampled_from(FORMS))
def test_what_is_written_is_what_tarfile_reads(content: dict[str, bytes], form: Form) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = layer([Entry(name, data) for name, data in content.items()], Path(folder), form)
        validate(Image((made,)))
        assert read_files(made) == content
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob(made)))) as archive:
            assert all(m.mtime == m.uid == m.gid == 0 for m in archive)


@given(part.map("x/".__add__), st.integers(0, 2**40), st.sampled_from(list(EntryType)))
def test_headers_are_read_back(name: str, size: int, kind: EntryType) -> None:
    size = size if kind is EntryType.FILE else 0
    raw = header(name, 0o755, size, kind, "t" * 150 if kind is EntryType.LINK else "")
    found = tarfile.TarFile(fileobj=io.BytesIO(raw + b"\0" * 1024)).next()
    assert found is not None
    assert (found.name, found.size, found.mode, found.type) == (name, size, 0o755, kind.value)


PREFIX = "/".join(["d" * 51] * 3)


@pytest.mark.parametrize(
    ("name", "pax"),
    [
        ("f" * 100, False),
        ("f" * 101, True),
        (f"{PREFIX}/{'f' * 100}", False),
        (f"{PREFIX}/{'f' * 101}", True),
        (f"{PREFIX}d/{'f' * 100}", True),
        ("é", True),
        ("a b\n'\"", False),
    ],
)
def test_pax_records_only_where_ustar_cannot_hold_the_name(name: str, pax: bool) -> None:
    raw = header(name, 0o644, 0)
    found = tarfile.TarFile(fileobj=io.BytesIO(raw + b"\0" * 1024)).next()
    assert found is not None
    assert found.name == name
    assert (len(raw) > 512) == pax


def test_one_order_whatever_the_input(cache: Path) -> None:
    entries = [
        Entry("opt/venv/b", b"b"),
        Entry("opt/venv/a-b", b"1"),
        Entry("opt/venv/a/b", b"2"),
        link("opt/venv/z", "a/b"),
        directory("opt/venv/empty"),
    ]
    one, two = layer(entries, cache), layer(entries[::-1], cache)
    assert one == two
    with tarfile.open(fileobj=io.BytesIO(blob(one))) as archive:
        assert archive.getnames() == [
            "opt/venv", "opt/venv/a", "opt/venv/a-b", "opt/venv/a/b", "opt/venv/b",
            "opt/venv/empty", "opt/venv/z",
        ]  # fmt: skip
    assert one.descriptor.annotations == {LAYER_KIND: "code", LAYER_TITLE: "a title"}


def test_the_forms_hold_the_same_tar(cache: Path) -> None:
    entries = [Entry("opt/venv/big", bytes(range(256)) * 9000), Entry("opt/venv/empty", b"")]
    made = [layer(entries, cache, form) for form in FORMS]
    assert len({one.diff_id for one in made}) == 1
    assert len({gzip.decompress(blob(one)) for one in made}) == 1
    assert made[2].size < made[0].size / 10


@pytest.mark.parametrize("form", [Stored, Spliced, Isal])
@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 131070, 1 << 20, (1 << 20) + 7])
def test_bytes_do_not_depend_on_the_pieces_they_come_in(
    form: type[Stored] | type[Spliced] | type[Isal], size: int, cache: Path
) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    made = []
    for step in (size or 1, 7001):
        with BlobWriter(cache, spill=1 << 30) as out:
            gz = form(out)
            for at in range(0, size, step):
                gz.write(data[at : at + step])
            gz.close()
            made.append(out.commit()[1])
    assert made[0] == made[1]
    assert isinstance(made[0], bytes)
    if size or form is not Spliced:
        assert gzip.decompress(made[0]) == data


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "a/../b", "..", "", "a//b", "a/", "./a", "a\0b", "\udc80", "a/.wh.b"]
)
def test_names_that_are_refused(name: str, cache: Path) -> None:
    with pytest.raises(ImageError):
        layer([Entry(name, b"")], cache)
    assert not list(cache.rglob("*"))


def test_a_name_twice(cache: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.write_bytes(b"1")
    assert len(arrange([Entry("a", b"1"), Entry("a", same)])) == 1
    with pytest.raises(ImageError, match="two different files are called 'opt/venv/a'"):
        layer([Entry("opt/venv/a", b"1"), Entry("opt/venv/a", b"2")], cache)
    with pytest.raises(ImageError, match="is not a directory"):
        layer([Entry("opt/venv/a", b"1"), Entry("opt/venv/a/b", b"2")], cache)


def test_no_entry_for_what_the_base_owns(cache: Path) -> None:
    made = layer([Entry("opt/clustrix/code/m.py", b""), Entry("etc/x/y", b"")], cache)
    with tarfile.open(fileobj=io.BytesIO(blob(made))) as archive:
        assert archive.getnames() == [
            "etc/x/y", "opt/clustrix", "opt/clustrix/code", "opt/clustrix/code/m.py",
        ]  # fmt: skip


def test_an_unreadable_file_leaves_nothing_behind(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot read"):
        layer([Entry("opt/venv/a", tmp_path / "missing")], cache, "isal")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_damaged_member_of_a_wheel_is_named(cache: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 999
    raw = bytearray(zlib.compress(data, wbits=-15))
    raw[50:60] = b"\xff" * 10
    (tmp_path / "a.whl").write_bytes(raw)
    member = Member(tmp_path / "a.whl", 0, len(raw), len(data), zlib.crc32(data))
    with pytest.raises(ImageError, match=r"a\.whl: 'opt/venv/a' (cannot be inflated|has a wrong)"):
        layer([Entry("opt/venv/a", member)], cache, "spliced")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot write to the cache '/dev/full'"):
        layer([Entry("opt/venv/a", b"x")], Path("/dev/full"), "isal")


def test_small_stored_layers_touch_no_file(cache: Path) -> None:
    assert isinstance(layer([Entry("opt/venv/a", b"x")], cache).blob, bytes)
    assert not cache.exists()
    big = layer([Entry("opt/venv/a", b"x" * (5 << 20))], cache)
    assert isinstance(big.blob, Path)
    assert not list((cache / "tmp").iterdir())
    validate(Image((big,)))
