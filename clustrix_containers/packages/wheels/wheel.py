"""What a wheel installs: the entries that PyPA's ``installer`` would make, their bytes left in the wheel.

What an installer generates (console scripts, rewritten shebangs, RECORD, INSTALLER) is made here.
Wheels become layers without being recompressed: their deflate streams go in as they are, so a
wheel's layer has one digest on every machine. Formats:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/,
https://packaging.python.org/en/latest/specifications/recording-installed-packages/ and
https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import posixpath
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packaging.utils import canonicalize_name, canonicalize_version

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, Member, arrange, content_size, read_content
from clustrix_containers.worker.contract import VENV

PYTHON = f"{VENV}/bin/python"
"""The shebang of every script in an image."""

INSTALLER = b"clustrix\n"
"""The contents of INSTALLER in an image (part of layers' digests)."""


@dataclass(frozen=True, slots=True)
class RecordRow:
    """One line of a RECORD: the hash as written (``sha256=…`` or empty) and the size in bytes, if given."""

    hash: str
    size: int | None

    @property
    def sha256(self) -> str | None:
        """The sha256 in hex, if that is the hash's kind."""
        kind, _, value = self.hash.partition("=")
        if kind != "sha256":
            return None
        try:
            return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
        except ValueError:
            return None


def parse_record(text: str) -> dict[str, RecordRow]:
    """Path -> row, in the file's order. ImageError: a malformed line."""
    rows: dict[str, RecordRow] = {}
    try:
        for line in filter(None, csv.reader(io.StringIO(text, newline=""))):
            path, kind, size, *_ = [*line, "", ""]
            rows[path.replace("\\", "/")] = RecordRow(kind, int(size) if size.strip() else None)
    except (csv.Error, ValueError) as error:
        raise ImageError(f"a RECORD cannot be read: {error}") from error
    return rows


def site_packages(python: str) -> str:
    """The image's site-packages of a Python ``X.Y``, without a leading slash."""
    return f"{VENV[1:]}/lib/python{python}/site-packages"


def record_entry(info: str, entries: Iterable[Entry], site: str) -> Entry:
    """The RECORD of these entries. ``info`` is the ``.dist-info`` in the image."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for entry in sorted(entries, key=lambda entry: entry.name):
        content, size = entry.content, content_size(entry.content)
        # A member is checked when it is packed.
        digest = content.sha256 if isinstance(content, Member) else None
        if digest is None:
            sha, size = hashlib.sha256(), 0
            for piece in read_content(content):
                sha.update(piece)
                size += len(piece)
            digest = sha.hexdigest()
        encoded = base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()
        writer.writerow((posixpath.relpath(entry.name, site), f"sha256={encoded}", size))
    writer.writerow((posixpath.relpath(f"{info}/RECORD", site), "", ""))
    return Entry(f"{info}/RECORD", out.getvalue().encode())


def script_entries(text: str) -> Iterator[Entry]:
    """The console and GUI scripts that an ``entry_points.txt`` declares."""
    from configparser import ConfigParser, Error

    parser = ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(text)
    except Error as error:
        raise ImageError(f"entry_points.txt cannot be read: {error}") from error
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            for name, value in parser.items(section):
                yield Entry(f"{VENV[1:]}/bin/{name}", _entry_point_script(name, value), 0o755)


def with_shebang(content: bytes) -> bytes:
    """A script with the image's Python in its first line, if that names some Python."""
    first, newline, rest = content.partition(b"\n")
    words = first[2:].split(maxsplit=1)
    if not (first.startswith(b"#!") and words and b"python" in words[0].split(b"/")[-1]):
        return content
    # Without its options, as pip and installer do.
    return b"#!" + PYTHON.encode() + newline + rest


def _entry_point_script(name: str, value: str) -> bytes:
    module, _, attributes = value.partition("[")[0].strip().partition(":")
    module, attributes = module.strip(), attributes.strip()
    parts = [*module.split("."), *(attributes.split(".") if attributes else [])]
    if not attributes or not all(part.isidentifier() for part in parts) or "/" in name:
        raise ImageError(f"not an entry point: {name} = {value}")
    return (
        f"#!{PYTHON}\n"
        "import sys\n"
        f"from {module} import {attributes.split('.')[0]}\n"
        'if __name__ == "__main__":\n'
        f"    sys.exit({attributes}())\n"
    ).encode()


@dataclass(frozen=True, slots=True)
class WheelFile:
    """An opened wheel: its files by their path in the zip, each with whether it is executable."""

    path: Path
    name: str
    info: str
    members: dict[str, tuple[Member, bool]]
    record: dict[str, RecordRow]

    @classmethod
    def open(cls, path: Path) -> WheelFile:
        """Read the zip's directory; ImageError names the wheel and what is wrong with it."""
        name, version = split_filename(path.name)
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
                record, info = _record(archive, path, name, version)
                members = dict(_members(archive, raw, path, record))
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
            raise ImageError(
                f"{path.name} is not a wheel: {error}", hint="Delete it: it is downloaded again."
            ) from error
        return cls(path, name, info, members, record)


def split_filename(filename: str) -> tuple[str, str]:
    """Name and version, as they are spelled in a wheel's file name."""
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6):
        raise ImageError(f"not the file name of a wheel: {filename!r}")
    return parts[0], parts[1]


def same_version(one: str, other: str) -> bool:
    """Whether two versions, as file names or metadata spell them, are equal."""
    one, other = one.replace("_", "-"), other.replace("_", "-")
    return canonicalize_version(one) == canonicalize_version(other)


def wheel_entries(path: Path, python: str) -> list[Entry]:
    """What a wheel puts into ``/opt/venv`` of a Python ``X.Y``, RECORD and INSTALLER included."""
    wheel = WheelFile.open(path)
    site = site_packages(python)
    info = f"{site}/{wheel.info}"
    entries: list[Entry] = []
    if points := wheel.members.get(f"{wheel.info}/entry_points.txt"):
        entries.extend(script_entries(b"".join(read_content(points[0])).decode()))
    for name, (member, executable) in wheel.members.items():
        scheme, target = _destination(wheel, name, site, python)
        if target in (f"{info}/RECORD", f"{info}/INSTALLER") or "__pycache__" in name.split("/"):
            continue
        content: Member | bytes = member
        script = scheme == "scripts"
        if script and next(iter(read_content(member)), b"").startswith(b"#!python"):
            content = with_shebang(b"".join(read_content(member)))
        entries.append(Entry(target, content, 0o755 if executable or script else 0o644))
    entries.append(Entry(f"{info}/INSTALLER", INSTALLER))
    entries = arrange(entries, owned=())
    return [*entries, record_entry(info, entries, site)]


def _record(
    archive: zipfile.ZipFile, path: Path, name: str, version: str
) -> tuple[dict[str, RecordRow], str]:
    tops = {item.split("/")[0] for item in archive.namelist()}
    infos = [top for top in tops if top.endswith(".dist-info")]
    if len(infos) != 1:
        raise ImageError(f"{path.name} has {len(infos)} .dist-info directories, not one")
    (info,) = infos
    own, _, own_version = info.removesuffix(".dist-info").rpartition("-")
    if canonicalize_name(own) != canonicalize_name(name) or not same_version(own_version, version):
        raise ImageError(f"{path.name} is of another distribution: {info}")
    try:
        metadata = archive.read(f"{info}/WHEEL").decode()
        record = parse_record(archive.read(f"{info}/RECORD").decode())
    except KeyError as error:
        raise ImageError(f"{path.name}: {error}") from error
    found = re.search(r"^Wheel-Version:\s*(\d+)\.", metadata, re.M)
    if found is None or found[1] != "1":
        raise ImageError(f"{path.name} has a Wheel-Version that is not 1.x")
    return record, info


def _members(
    archive: zipfile.ZipFile, raw: BinaryIO, path: Path, record: dict[str, RecordRow]
) -> Iterator[tuple[str, tuple[Member, bool]]]:
    seen: dict[str, zipfile.ZipInfo] = {}
    for item in archive.infolist():
        name = item.filename
        if name.endswith("/"):
            continue
        if item.flag_bits & 1:
            raise ImageError(f"{path.name}: {name!r} is encrypted")
        before = seen.setdefault(name, item)
        if before is not item:
            if (before.CRC, before.file_size) != (item.CRC, item.file_size):
                raise ImageError(f"{path.name} has two different files called {name!r}")
            continue
        if item.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            raise ImageError(f"{path.name}: {name!r} is neither stored nor deflated")
        row = record.get(name)
        member = Member(
            path,
            _data_offset(raw, item, path),
            item.compress_size,
            item.file_size,
            item.CRC,
            row.sha256 if row else None,
            item.compress_type == zipfile.ZIP_STORED,
        )
        mode = item.external_attr >> 16
        yield name, (member, stat.S_ISREG(mode) and bool(mode & 0o111))


def _data_offset(raw: BinaryIO, item: zipfile.ZipInfo, path: Path) -> int:
    # The local header's own name and extra field may differ from the directory's.
    raw.seek(item.header_offset)
    head = raw.read(30)
    if len(head) != 30 or head[:4] != b"PK\x03\x04":
        raise ImageError(f"{path.name}: no local header of {item.filename!r} at its offset")
    name, extra = struct.unpack("<HH", head[26:30])
    return int(item.header_offset) + 30 + int(name) + int(extra)


def _destination(wheel: WheelFile, name: str, site: str, python: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    if first != wheel.info.removesuffix(".dist-info") + ".data":
        return "", f"{site}/{name}"
    scheme, _, rest = rest.partition("/")
    roots = {
        "purelib": site,
        "platlib": site,
        "scripts": f"{VENV[1:]}/bin",
        "data": VENV[1:],
        "headers": f"{VENV[1:]}/include/site/python{python}/{wheel.name}",
    }
    if scheme not in roots or not rest:
        raise ImageError(f"{wheel.path.name}: {name!r} is in no known .data directory")
    return scheme, f"{roots[scheme]}/{rest}"
