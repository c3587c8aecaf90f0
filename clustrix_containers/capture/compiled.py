"""Whether a compiled file runs where the image runs.

ELF: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
"""

from __future__ import annotations

import importlib.machinery
import platform as host
import struct
from pathlib import Path

from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Platform

_MACHINES = {
    3: "386",
    21: "ppc64le",
    22: "s390x",
    40: "arm",
    62: "amd64",
    183: "arm64",
    243: "riscv64",
}
_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def host_platform() -> Platform:
    """Linux on this machine's processor."""
    machine = host.machine().lower()
    return Platform("linux", _NAMES.get(machine, machine))


def is_extension(path: Path) -> bool:
    """Whether a file is a compiled module, for whatever platform or version of Python."""
    return path.name.endswith((".so", ".pyd")) and "." in path.name


def check(path: Path, module: str, platform: Platform) -> None:
    """Raise a CaptureError naming ``module`` unless the compiled ``path`` runs on ``platform``."""
    with path.open("rb") as file:
        head = file.read(20)
    hint = (
        f"Build it for {platform} and this Python, put it in a package that has a wheel, "
        "or do not import it."
    )
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise CaptureError(
            f"the compiled module {module} ({path.name}) is not for Linux",
            hint=hint,
            module=module,
            path=str(path),
        )
    (machine,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
    built_for = _MACHINES.get(machine, f"machine {machine}")
    if built_for != platform.architecture:
        raise CaptureError(
            f"the compiled module {module} ({path.name}) is for {built_for}, "
            f"the image is for {platform}",
            hint=hint,
            module=module,
            path=str(path),
        )


def refuse_other_builds(module: str, directories: tuple[Path, ...], platform: Platform) -> None:
    """Raise a CaptureError if ``module`` lies there compiled, but not for this Python."""
    leaf = module.rpartition(".")[2]
    for directory in directories:
        for path in sorted(directory.glob(f"{leaf}.*")) if directory.is_dir() else ():
            if is_extension(path):
                tags = ", ".join(importlib.machinery.EXTENSION_SUFFIXES)
                raise CaptureError(
                    f"the compiled module {module} is there only as {path.name}, which the "
                    f"image's Python on {platform} does not load",
                    hint=f"Build it for this Python (its file ends in one of {tags}).",
                    module=module,
                    path=str(path),
                )
