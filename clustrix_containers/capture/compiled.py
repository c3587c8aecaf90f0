"""Whether a compiled file runs where the image runs."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.elf import read_architecture
from clustrix_containers.oci.model import Platform


def is_extension(path: Path) -> bool:
    """Whether a file is a compiled module, for whatever platform or version of Python."""
    return path.name.endswith((".so", ".pyd")) and "." in path.name


def check(path: Path, module: str, platform: Platform) -> None:
    """Raise a CaptureError naming ``module`` unless the compiled ``path`` runs on ``platform``."""
    architecture = read_architecture(path)
    hint = (
        f"Build it for {platform} and this Python, put it in a package that has a wheel, "
        "or do not import it."
    )
    if architecture is None:
        raise CaptureError(
            f"the compiled module {module} ({path.name}) is not for Linux",
            hint=hint,
            module=module,
            path=str(path),
        )
    if architecture != platform.architecture:
        raise CaptureError(
            f"the compiled module {module} ({path.name}) is for {architecture}, "
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
