"""Shared libraries: those that ELF files of this machine need, and whether a package runs on a base."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.capture.elf import read_elf
from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import Image

from . import LABEL_GLIBC, LIBRARIES

MANYLINUX = (
    "libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libc.so.6",
    "libnsl.so.1", "libutil.so.1", "libpthread.so.0", "libresolv.so.2", "libanl.so.1", "libz.so.1",
    "libexpat.so.1", "libgomp.so.1", "libatomic.so.1",
)  # fmt: skip
"""What a manylinux wheel may expect of its system (PEP 513, 600), without X11 and GLib, and what
wheels expect although they may not."""

SERVICES = ("libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2")
"""What glibc loads by name: users, groups and hosts."""

_PERENNIAL = {
    "manylinux1": "manylinux_2_5",
    "manylinux2010": "manylinux_2_12",
    "manylinux2014": "manylinux_2_17",
}


@dataclass(frozen=True, slots=True)
class Libraries:
    """``loader`` is the dynamic loader's canonical path; ``directory`` one that it searches by default.

    ``paths`` are the libraries by the names under which they are needed.
    """

    loader: str
    directory: str
    paths: dict[str, Path]


def find_libraries(files: Iterable[Path], optional: Iterable[str] = ()) -> Libraries:
    """The libraries that these files need, directly or not, and those of ``optional`` that exist.

    ImageError names a library that is not found.
    """
    files = list(files)
    elves = (read_elf(path) for path in files)
    loader = next((elf.interpreter for elf in elves if elf and elf.interpreter), None)
    if loader is None:
        raise ImageError(f"{files[0]} has no dynamic loader", hint="Name a base image: base=.")
    found = {name: path for name in optional if (path := _find(name, (), files[0]))}
    pending = [(path, path) for path in files] + [(path, path) for path in found.values()]
    while pending:
        path, origin = pending.pop()
        elf = read_elf(path)
        if elf is None:
            continue
        for name in elf.needed:
            if name in found or name == os.path.basename(loader):  # noqa: PTH119
                continue
            library = _find(name, elf.runpath, origin)
            beside = (path.parent / name for path in found.values())
            library = library or next((path for path in beside if path.is_file()), None)
            if library is None:
                raise ImageError(
                    f"{path} needs {name}, which is not found on this machine",
                    hint="Install it, or name a base image: base=.",
                    library=name,
                )
            found[name] = library
            pending.append((library, library))
    return Libraries(loader, _default_directory(loader), found)


def base_abi(base: Image) -> tuple[str, str, list[str]]:
    """What :func:`check_wheel` and :func:`check_libraries` compare with, as JSON values.

    Platform, version of glibc, names of shared libraries; the last two are empty if unknown.
    """
    labels = base.settings.get("Labels") or {}
    libraries = {
        library
        for layer in base.layers
        for library in layer.descriptor.annotations.get(LIBRARIES, "").split()
    }
    return str(base.platform), str(labels.get(LABEL_GLIBC, "")), sorted(libraries)


def check_wheel(filename: str, base: Image) -> None:
    """Raise an ImageError if none of a wheel's platform tags allows the base."""
    tags = filename.removesuffix(".whl").split("-")[-1].split(".")
    if "any" in tags:
        return
    glibc = _version(base_abi(base)[1])
    problems = [_problem(tag, base.platform.machine, glibc) for tag in tags]
    if all(problems):
        raise ImageError(
            f"{filename} cannot run on the base: {problems[0]}",
            hint="Use a base with a newer glibc, or another version of the package.",
            wheel=filename,
        )


def check_libraries(name: str, files: Iterable[Path], base: Image) -> None:
    """Raise an ImageError if a shared object of an installed distribution cannot run on the base.

    It needs a newer glibc than the base's, or a library that neither the distribution nor the
    base has. What is unknown of a base is not checked.
    """
    _, version, libraries = base_abi(base)
    glibc, known = _version(version), set(libraries)
    objects = [(path, elf) for path in files if ".so" in path.name and (elf := read_elf(path))]
    own = {path.name for path, _ in objects} | {elf.soname for _, elf in objects if elf.soname}
    for path, elf in objects:
        if glibc and elf.glibc and elf.glibc > glibc:
            raise ImageError(
                f"{path.name} of {name} needs glibc {elf.glibc[0]}.{elf.glibc[1]}, "
                f"the base has glibc {glibc[0]}.{glibc[1]}",
                hint="Use a base with a newer glibc, or a wheel of the package.",
                distribution=name,
            )
        for needed in elf.needed:
            if known and needed not in known | own and not needed.startswith("ld-"):
                raise ImageError(
                    f"{path.name} of {name} needs {needed}, which the base does not have",
                    hint="Use a wheel of the package, or a Dockerfile that installs it: base=.",
                    distribution=name,
                    library=needed,
                )


def _problem(tag: str, machine: str, glibc: tuple[int, int] | None) -> str | None:
    name, _, rest = tag.partition("_")
    perennial = f"{_PERENNIAL.get(name, name)}_{rest}"
    found = re.fullmatch(r"(?:linux|manylinux_(\d+)_(\d+))_(\w+)", perennial)
    if found is None:
        if tag.startswith("musllinux"):
            return "it is for musl, the base has glibc" if glibc else None
        return f"it is for {tag}"
    needed = int(found[1] or 0), int(found[2] or 0)
    if found[3] != machine:
        return f"it is for {found[3]}, the base is {machine}"
    if glibc is not None and needed > glibc:
        return f"it needs glibc {needed[0]}.{needed[1]}, the base has glibc {glibc[0]}.{glibc[1]}"
    return None


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _find(name: str, runpath: tuple[str, ...], origin: Path) -> Path | None:
    if "/" in name:
        return Path(name) if Path(name).is_file() else None
    here = str(origin.resolve().parent)
    directories = [part.replace("${ORIGIN}", here).replace("$ORIGIN", here) for part in runpath]
    directories += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    architecture = elf.architecture if (elf := read_elf(origin)) else None
    for directory in [*directories, *_system_directories()]:
        candidate = Path(directory, name) if directory else None
        if candidate and (other := read_elf(candidate)) and other.architecture == architecture:
            return candidate
    return None


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
    """The first directory that this loader searches without a cache file."""
    if "ld-musl" in loader:
        return "/lib"
    done = subprocess.run([loader, "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"^\s+(/\S+) \(system search path\)", done.stdout, re.M)
    if found:
        return found[1]
    # Before glibc 2.33 the loader does not list it: Debian's multiarch directory, else its own.
    triple = next((d for d in _system_directories() if Path(d, "libc.so.6").exists()), None)
    return triple or os.path.dirname(loader)  # noqa: PTH120
