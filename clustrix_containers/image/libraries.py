"""Which shared libraries of this machine a set of ELF files needs, and where its loader looks."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.errors import ImageError

from .elf import read_elf

PEP600 = (
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libc.so.6",
    "libnsl.so.1",
    "libutil.so.1",
    "libpthread.so.0",
    "libresolv.so.2",
    "libanl.so.1",
    "libz.so.1",
    "libexpat.so.1",
    "libgomp.so.1",
    "libatomic.so.1",
)
"""What a manylinux wheel may expect of its system (PEP 513, 600), without X11 and GLib, and what
wheels expect all the same."""

SERVICES = ("libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2")
"""What glibc loads by name: users, groups and hosts."""


@dataclass(frozen=True, slots=True)
class Closure:
    """``loader`` is its canonical path; ``directory`` one in which it looks by itself."""

    loader: str
    directory: str
    libraries: dict[str, Path]


def closure(files: Iterable[Path], optional: Iterable[str] = ()) -> Closure:
    """The libraries that these files need, and theirs; ImageError names one that is not there.

    ``optional`` names libraries that are taken where they are found.
    """
    files = list(files)
    loader = next(
        (elf.interpreter for path in files if (elf := read_elf(path)) and elf.interpreter), None
    )
    if loader is None:
        raise ImageError(
            f"{files[0]} names no dynamic loader",
            hint="Name a base image: base=.",
        )
    found: dict[str, Path] = {}
    waiting = [(path, path) for path in files]
    for name in optional:
        if path := _find(name, (), files[0]):
            found[name] = path
            waiting.append((path, path))
    while waiting:
        path, origin = waiting.pop()
        elf = read_elf(path)
        if elf is None:
            continue
        for name in elf.needed:
            if name in found or name == os.path.basename(loader):  # noqa: PTH119
                continue
            library = _find(name, elf.runpath, origin) or _beside(name, found.values())
            if library is None:
                raise ImageError(
                    f"{path} needs {name}, which is nowhere on this machine",
                    hint="Install it, or name a base image: base=.",
                    library=name,
                )
            found[name] = library
            waiting.append((library, library))
    return Closure(loader, _default_directory(loader), found)


def _find(name: str, runpath: tuple[str, ...], origin: Path) -> Path | None:
    if "/" in name:
        return Path(name) if Path(name).is_file() else None
    here = str(origin.resolve().parent)
    places = [part.replace("${ORIGIN}", here).replace("$ORIGIN", here) for part in runpath]
    places += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    machine = elf.machine if (elf := read_elf(origin)) else None
    for place in [*places, *_system_directories()]:
        candidate = Path(place, name) if place else None
        if candidate and (other := read_elf(candidate)) and other.machine == machine:
            return candidate
    return None


def _beside(name: str, others: Iterable[Path]) -> Path | None:
    return next((path for other in others if (path := other.parent / name).is_file()), None)


def _system_directories() -> list[str]:
    found = list(_configured(Path("/etc/ld.so.conf")))
    triples = sorted(glob.glob("/lib/*-linux-*")) + sorted(glob.glob("/usr/lib/*-linux-*"))  # noqa: PTH207
    return [*found, *triples, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"]


def _configured(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        line = line.split("#")[0].strip()
        if line.startswith("include "):
            pattern = os.path.join(path.parent, line.split(None, 1)[1].strip())  # noqa: PTH118
            for other in sorted(glob.glob(pattern)):  # noqa: PTH207
                yield from _configured(Path(other))
        elif line:
            yield line


def _default_directory(loader: str) -> str:
    """The first directory that this loader searches by itself, without a cache file."""
    if "ld-musl" in loader:
        return "/lib"
    done = subprocess.run([loader, "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"^\s+(/\S+) \(system search path\)", done.stdout, re.M)
    if found:
        return found[1]
    # Before glibc 2.33 it does not tell; Debian's multiarch directory, else its own.
    triple = next((d for d in _system_directories() if Path(d, "libc.so.6").exists()), None)
    return triple or os.path.dirname(loader)  # noqa: PTH120
