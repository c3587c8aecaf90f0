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

from clustrix_containers.oci.model import elf_architecture

_Unpack = Callable[[str, int], "tuple[int, ...]"]
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


def _read(data: mmap.mmap) -> Elf:
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"

    def unpack(form: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(order + form, data, at)

    segments = list(_segments(unpack, wide))

    def offset(address: int) -> int:
        """The offset in the file of what is loaded at ``address``."""
        for kind, start, loaded, size in segments:
            if kind == _PT_LOAD and loaded <= address < loaded + size:
                return start + address - loaded
        return address

    parts = {kind: (start, start + size) for kind, start, _, size in reversed(segments)}
    tags = list(_dynamic(unpack, *parts.get(_PT_DYNAMIC, (0, 0)), wide))
    first = dict(reversed(tags))
    strings = offset(first.get(_STRTAB, 0))

    def text(at: int) -> str:
        return data[strings + at : data.find(b"\0", strings + at)].decode()

    versions = _needed_versions(unpack, offset(first.get(_VERNEED, 0)), first.get(_VERNEEDNUM, 0))
    matches = (re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", text(at)) for at in versions)
    paths = next((text(first[tag]) for tag in (_RUNPATH, _RPATH) if tag in first), "")
    interpreter = data[slice(*parts[_PT_INTERP])] if _PT_INTERP in parts else None
    return Elf(
        elf_architecture(*unpack("H", 18)),
        None if interpreter is None else interpreter.rstrip(b"\0").decode(),
        tuple(text(value) for tag, value in tags if tag == _NEEDED),
        text(first[_SONAME]) if _SONAME in first else None,
        tuple(part for part in paths.split(":") if part),
        max(((int(match[1]), int(match[2])) for match in matches if match), default=None),
    )


def _segments(unpack: _Unpack, wide: bool) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset in the file, address in memory, and size (bytes) of each segment."""
    (table,) = unpack("Q", 32) if wide else unpack("I", 28)
    step, count = unpack("HH", 54 if wide else 42)
    for at in range(table, table + count * step, step):
        if wide:
            kind, _, start, address, _, size = unpack("IIQQQQ", at)
        else:
            kind, start, address, _, size = unpack("IIIII", at)
        yield kind, start, address, size


def _dynamic(unpack: _Unpack, start: int, end: int, wide: bool) -> Iterator[tuple[int, int]]:
    for at in range(start, end, 16 if wide else 8):
        tag, value = unpack("qQ" if wide else "iI", at)
        if tag == 0:
            return
        yield tag, value


def _needed_versions(unpack: _Unpack, at: int, files: int) -> Iterator[int]:
    """Where the names of the versions that the file needs are in its strings."""
    for _ in range(files):
        _, count, _, first, following = unpack("HHIII", at)
        entry = at + first
        for _ in range(count):
            _, _, _, name, step = unpack("IHHII", entry)
            yield name
            entry += step
        at += following
