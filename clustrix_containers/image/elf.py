"""What a dynamically linked ELF file needs: loader, libraries, run paths, versions of glibc.

Format: the System V ABI, chapter 5, and the GNU extensions for symbol versions
(https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/symversion.html).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True, slots=True)
class Elf:
    """``machine`` is the ELF number (62: x86-64, 183: AArch64); ``glibc`` the newest version needed."""

    machine: int
    interpreter: str | None
    needed: tuple[str, ...]
    soname: str | None
    runpath: tuple[str, ...]
    glibc: tuple[int, int] | None


def read_elf(path: Path) -> Elf | None:
    """What the file says; ``None`` if it is no ELF file or a broken one."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except (OSError, ValueError, OverflowError, IndexError, struct.error):
        return None


def _read(data: mmap.mmap) -> Elf:
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (machine,) = struct.unpack_from(order + "H", data, 18)
    segments = list(_segments(data, wide, order))
    interpreter = next(
        (
            data[at : at + size].rstrip(b"\0").decode()
            for kind, at, _, size in segments
            if kind == 3
        ),
        None,
    )
    tags: list[tuple[int, int]] = []
    for kind, at, _, size in segments:
        if kind == _PT_DYNAMIC:
            tags = list(_dynamic(data, at, size, wide, order))
    first = dict(reversed(tags))
    strings = _offset(segments, first.get(_STRTAB, 0))

    def text(at: int) -> str:
        end = data.find(b"\0", strings + at)
        return data[strings + at : end].decode()

    paths = next((text(first[tag]) for tag in (_RUNPATH, _RPATH) if tag in first), "")
    versions = list(_needed_versions(data, segments, first, order, text))
    return Elf(
        machine,
        interpreter,
        tuple(text(value) for tag, value in tags if tag == _NEEDED),
        text(first[_SONAME]) if _SONAME in first else None,
        tuple(part for part in paths.split(":") if part),
        max(versions, default=None),
    )


def _segments(data: mmap.mmap, wide: bool, order: str) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset in the file, address, size in the file."""
    if wide:
        (start,) = struct.unpack_from(order + "Q", data, 32)
        size, count = struct.unpack_from(order + "HH", data, 54)
    else:
        (start,) = struct.unpack_from(order + "I", data, 28)
        size, count = struct.unpack_from(order + "HH", data, 42)
    for index in range(count):
        at = start + index * size
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", data, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", data, at)
        yield kind, offset, address, length


def _offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, at, start, size in segments:
        if kind == _PT_LOAD and start <= address < start + size:
            return at + address - start
    return address


def _dynamic(
    data: mmap.mmap, at: int, size: int, wide: bool, order: str
) -> Iterator[tuple[int, int]]:
    form = order + ("qQ" if wide else "iI")
    step = struct.calcsize(form)
    for position in range(at, at + size, step):
        tag, value = struct.unpack_from(form, data, position)
        if tag == 0:
            return
        yield tag, value


def _needed_versions(
    data: mmap.mmap,
    segments: list[tuple[int, int, int, int]],
    tags: dict[int, int],
    order: str,
    text: object,
) -> Iterator[tuple[int, int]]:
    if _VERNEED not in tags:
        return
    at = _offset(segments, tags[_VERNEED])
    for _ in range(tags.get(_VERNEEDNUM, 0)):
        _, count, _, first, following = struct.unpack_from(order + "HHIII", data, at)
        entry = at + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from(order + "IHHII", data, entry)
            found = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", text(name))  # type: ignore[operator]
            if found:
                yield int(found[1]), int(found[2])
            entry += step
        at += following
