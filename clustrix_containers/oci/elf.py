"""The dynamic section of ELF files: architecture, loader, libraries, run paths, glibc versions.

Format: the System V ABI, chapters 4 and 5, and the GNU extensions for symbol versions
(https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/symversion.html).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .model import elf_architecture

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_NEEDED, _STRTAB, _SONAME, _RPATH, _RUNPATH = 1, 5, 14, 15, 29
_VERNEED, _VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True, slots=True)
class Elf:
    """``architecture`` is OCI's name; ``glibc`` the newest version that the file needs."""

    architecture: str
    interpreter: str | None
    needed: tuple[str, ...]
    soname: str | None
    runpath: tuple[str, ...]
    glibc: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Segment:
    """``offset`` and ``size`` (bytes) in the file, ``address`` in memory."""

    kind: int
    offset: int
    address: int
    size: int


def read_architecture(path: Path) -> str | None:
    """OCI's name of the architecture, from the header alone; ``None`` if it is not an ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return _architecture(head)


def read_elf(path: Path) -> Elf | None:
    """The ELF file at ``path``; ``None`` if it is not an ELF file, or a broken one."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except (OSError, ValueError, OverflowError, IndexError, struct.error):
        return None


def _architecture(data: bytes | mmap.mmap) -> str:
    (machine,) = struct.unpack_from("<H" if data[5] == 1 else ">H", data, 18)
    return elf_architecture(machine)


def _read(data: mmap.mmap) -> Elf:
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    segments = list(_segments(data, wide, order))
    interpreter, tags = None, list[tuple[int, int]]()
    for segment in segments:
        if segment.kind == _PT_INTERP and interpreter is None:
            end = segment.offset + segment.size
            interpreter = data[segment.offset : end].rstrip(b"\0").decode()
        elif segment.kind == _PT_DYNAMIC:
            tags = list(_dynamic(data, segment, wide, order))
    first = dict(reversed(tags))
    strings = _offset(segments, first.get(_STRTAB, 0))

    def text(at: int) -> str:
        end = data.find(b"\0", strings + at)
        return data[strings + at : end].decode()

    paths = next((text(first[tag]) for tag in (_RUNPATH, _RPATH) if tag in first), "")
    versions: Iterator[str] = iter(())
    if _VERNEED in first:
        start, count = _offset(segments, first[_VERNEED]), first.get(_VERNEEDNUM, 0)
        versions = _needed_versions(data, start, count, order, text)
    matches = (re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", version) for version in versions)
    return Elf(
        _architecture(data),
        interpreter,
        tuple(text(value) for tag, value in tags if tag == _NEEDED),
        text(first[_SONAME]) if _SONAME in first else None,
        tuple(part for part in paths.split(":") if part),
        max(((int(match[1]), int(match[2])) for match in matches if match), default=None),
    )


def _segments(data: mmap.mmap, wide: bool, order: str) -> Iterator[_Segment]:
    if wide:
        (start,) = struct.unpack_from(order + "Q", data, 32)
        size, count = struct.unpack_from(order + "HH", data, 54)
    else:
        (start,) = struct.unpack_from(order + "I", data, 28)
        size, count = struct.unpack_from(order + "HH", data, 42)
    for at in range(start, start + count * size, size):
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", data, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", data, at)
        yield _Segment(kind, offset, address, length)


def _offset(segments: list[_Segment], address: int) -> int:
    """The offset in the file of what is loaded at ``address``."""
    for segment in segments:
        start = segment.address
        if segment.kind == _PT_LOAD and start <= address < start + segment.size:
            return segment.offset + address - start
    return address


def _dynamic(
    data: mmap.mmap, segment: _Segment, wide: bool, order: str
) -> Iterator[tuple[int, int]]:
    form = order + ("qQ" if wide else "iI")
    step = struct.calcsize(form)
    for position in range(segment.offset, segment.offset + segment.size, step):
        tag, value = struct.unpack_from(form, data, position)
        if tag == 0:
            return
        yield tag, value


def _needed_versions(
    data: mmap.mmap, at: int, files: int, order: str, text: Callable[[int], str]
) -> Iterator[str]:
    for _ in range(files):
        _, count, _, first, following = struct.unpack_from(order + "HHIII", data, at)
        entry = at + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from(order + "IHHII", data, entry)
            yield text(name)
            entry += step
        at += following
