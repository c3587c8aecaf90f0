"""What a wheel installs: the entries that PyPA's ``installer`` would make, their bytes left in the wheel.

What an installer generates (console scripts, rewritten shebangs, RECORD, INSTALLER) is made here. Format of wheels:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, Member, arrange, read_content
from clustrix_containers.worker.contract import VENV

from .records import Row, parse_record, record_entry, reshebanged, script_entries, site_packages

INSTALLER = b"clustrix\n"


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A wheel that was opened and checked: its files by their path in the zip."""

    path: Path
    name: str
    version: str
    info: str
    members: dict[str, tuple[Member, bool]]
    record: dict[str, Row]

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
                f"{path.name} is not a wheel: {error}", hint="Throw it away; it is fetched again."
            ) from error
        return cls(path, name, version, info, members, record)

    def read(self, name: str) -> bytes | None:
        """One small file of the wheel, checked; ``None`` if it is not there."""
        if name not in self.members:
            return None
        return b"".join(read_content(self.members[name][0]))


def split_filename(filename: str) -> tuple[str, str]:
    """Name and version, as they are spelled in a wheel's file name."""
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6):
        raise ImageError(f"not the file name of a wheel: {filename!r}")
    return parts[0], parts[1]


def wheel_entries(path: Path, python: str) -> list[Entry]:
    """What a wheel puts into ``/opt/venv`` of a Python ``X.Y``, RECORD and INSTALLER included."""
    wheel = WheelFile.open(path)
    site = site_packages(python)
    info = f"{site}/{wheel.info}"
    entries: list[Entry] = []
    known: dict[str, str] = {}
    points = wheel.read(f"{wheel.info}/entry_points.txt")
    if points is not None:
        entries.extend(script_entries(points.decode()))
    for name, (member, executable) in wheel.members.items():
        scheme, target = _destination(wheel, name, site, python)
        if target in (f"{info}/RECORD", f"{info}/INSTALLER") or "__pycache__" in name.split("/"):
            continue
        script = scheme == "scripts"
        content = _script(member) if script else member
        entries.append(Entry(target, content, 0o755 if executable or script else 0o644))
        if content is member and member.sha256:
            known[target] = member.sha256
    entries.append(Entry(f"{info}/INSTALLER", INSTALLER))
    entries = arrange(entries, owned=())
    return [*entries, record_entry(info, entries, known, site)]


def _record(
    archive: zipfile.ZipFile, path: Path, name: str, version: str
) -> tuple[dict[str, Row], str]:
    infos = {
        top
        for top in (item.split("/")[0] for item in archive.namelist())
        if top.endswith(".dist-info")
    }
    if len(infos) != 1:
        raise ImageError(f"{path.name} has {len(infos)} .dist-info directories, not one")
    info = infos.pop()
    own, _, own_version = info.removesuffix(".dist-info").rpartition("-")
    if _plain(own) != _plain(name) or _plain(own_version) != _plain(version):
        raise ImageError(f"{path.name} contains another distribution: {info}")
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
    archive: zipfile.ZipFile, raw: object, path: Path, record: dict[str, Row]
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


def _data_offset(raw: object, item: zipfile.ZipInfo, path: Path) -> int:
    # The local header's own name and extra field may differ from the directory's.
    raw.seek(item.header_offset)  # type: ignore[attr-defined]
    head = raw.read(30)  # type: ignore[attr-defined]
    if len(head) != 30 or head[:4] != b"PK\x03\x04":
        raise ImageError(f"{path.name}: no file begins where {item.filename!r} should")
    name, extra = struct.unpack("<HH", head[26:30])
    return int(item.header_offset) + 30 + int(name) + int(extra)


def _destination(wheel: WheelFile, name: str, site: str, python: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    if not first.endswith(".data") or first != wheel.info.removesuffix(".dist-info") + ".data":
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


def _script(member: Member) -> Member | bytes:
    """A script of the wheel: with the image's shebang if it asks for one, else as it is."""
    head = next(iter(read_content(member)), b"")
    if not head.startswith(b"#!python"):
        return member
    return reshebanged(b"".join(read_content(member)))


def _plain(text: str) -> str:
    return re.sub(r"[-_.]+", "_", text).lower()
