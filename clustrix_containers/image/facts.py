"""What is known of a base: where its Python is, which version, which glibc; whether a wheel can run there.

It stands in the image's labels: a registry's image gets them here, from its environment
variables or from what the user declares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import (
    DOCKER_LAYER,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    Image,
    Layer,
)
from clustrix_containers.worker.contract import LABEL_PYTHON, LAYER_KIND, LAYER_TITLE

from .elf import read_elf

LABEL_INTERPRETER = "io.clustrix-containers.interpreter"
"""Label: the path of the base's Python."""

LABEL_GLIBC = "io.clustrix-containers.glibc"
"""Label: the base's version of glibc, ``2.36``."""

LIBRARIES = "io.clustrix-containers.libraries"
"""Annotation on a packed base's layer: its shared libraries, separated by blanks."""

_TYPES = {
    DOCKER_LAYER: LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_TAR: LAYER_TAR,
    LAYER_ZSTD: LAYER_ZSTD,
}
_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i686", "arm": "armv7l"}


def as_base(
    image: Image,
    name: str,
    *,
    python: str | None = None,
    version: str | None = None,
    glibc: str | None = None,
    minor: str | None = None,
) -> Image:
    """An image with the labels of a base and with OCI media types; its blobs stay as they are.

    ``python`` and ``version`` are of its Python, where they are known.
    """
    minor = minor or f"{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter, version = (python, version) if python and version else _where(image, name, python)
    if ".".join(version.split(".")[:2]) != minor:
        raise ImageError(
            f"{name} has Python {version}, and this is Python {minor}",
            hint=f"Use a base with Python {minor}: base='python:{minor}-slim@sha256:…'.",
            base=version,
            needed=minor,
        )
    labels = {
        **(image.settings.get("Labels") or {}),
        LABEL_INTERPRETER: interpreter,
        LABEL_PYTHON: version,
    }
    if glibc:
        labels[LABEL_GLIBC] = glibc
    layers = tuple(_converted(layer, name) for layer in image.layers)
    return replace(image, layers=layers, raw_config=None, raw_manifest=None).configure(
        Labels=labels
    )


def check_wheel(filename: str, base: Image) -> None:
    """ImageError if a wheel's platform tags say that it cannot run on the base."""
    tags = filename.removesuffix(".whl").split("-")[-1].split(".")
    if "any" in tags:
        return
    machine = _MACHINES.get(base.platform.architecture, base.platform.architecture)
    glibc = _version((base.settings.get("Labels") or {}).get(LABEL_GLIBC))
    problems = [problem for tag in tags if (problem := _problem(tag, machine, glibc))]
    if len(problems) == len(tags):
        raise ImageError(
            f"{filename} cannot run on the base: {problems[0]}",
            hint="Use a base with a newer glibc, or another version of the package.",
            wheel=filename,
        )


def known_of(base: Image) -> tuple[str, str, list[str]]:
    """What the checks of this module go by: platform, version of glibc, libraries; as JSON values."""
    labels = base.settings.get("Labels") or {}
    libraries = {
        library
        for layer in base.layers
        for library in layer.descriptor.annotations.get(LIBRARIES, "").split()
    }
    return str(base.platform), str(labels.get(LABEL_GLIBC, "")), sorted(libraries)


def check_libraries(name: str, files: Iterable[Path], base: Image) -> None:
    """ImageError if a shared object among an installed distribution's files cannot run on the base.

    It needs a newer glibc than the base's, or a library that neither the distribution nor the
    base has. What is not known of a base is not checked.
    """
    _, version, libraries = known_of(base)
    glibc, has = _version(version), set(libraries)
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
            if has and needed not in has | own and not needed.startswith("ld-"):
                raise ImageError(
                    f"{path.name} of {name} needs {needed}, which the base does not have",
                    hint="Use a wheel of the package, or a Dockerfile that installs it: base=.",
                    distribution=name,
                    library=needed,
                )


def _problem(tag: str, machine: str, glibc: tuple[int, int] | None) -> str | None:
    found = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag)
    legacy = re.fullmatch(r"(manylinux(?:1|2010|2014))_(\w+)", tag)
    plain = re.fullmatch(r"linux_(\w+)", tag)
    if found:
        needed, wanted = (int(found[1]), int(found[2])), found[3]
    elif legacy:
        needed, wanted = _MANYLINUX[legacy[1]], legacy[2]
    elif plain:
        needed, wanted = (0, 0), plain[1]
    elif tag.startswith("musllinux"):
        return "it is for musl, the base has glibc" if glibc else None
    else:
        return f"it is for {tag}"
    if wanted != machine:
        return f"it is for {wanted}, the base is {machine}"
    if glibc is not None and needed > glibc:
        return f"it needs glibc {needed[0]}.{needed[1]}, the base has glibc {glibc[0]}.{glibc[1]}"
    return None


def _version(text: str | None) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def _where(image: Image, name: str, python: str | None) -> tuple[str, str]:
    env: Mapping[str, str] = dict(
        item.partition("=")[::2] for item in image.settings.get("Env") or []
    )
    labels: Mapping[str, str] = image.settings.get("Labels") or {}
    if python:
        found = re.search(r"python(\d+\.\d+)$", python)
        version = found[1] if found else env.get("PYTHON_VERSION") or labels.get(LABEL_PYTHON)
        if not python.startswith("/") or not version:
            raise ImageError(
                f"not the path of a Python in a base: {python!r}",
                hint="It reads /usr/bin/python3.11, with the minor version in its name.",
            )
        return python, version
    if LABEL_INTERPRETER in labels and LABEL_PYTHON in labels:
        return labels[LABEL_INTERPRETER], labels[LABEL_PYTHON]
    version = env.get("PYTHON_VERSION", "")
    if re.match(r"\d+\.\d+", version):
        # The official Python images, and those made from them.
        return f"/usr/local/bin/python{'.'.join(version.split('.')[:2])}", version
    raise ImageError(
        f"nothing says where {name} has its Python",
        hint="Name it: python='/usr/bin/python3.11'. A base without Python cannot be used.",
    )


def _converted(layer: Layer, name: str) -> Layer:
    kind = _TYPES.get(layer.descriptor.media_type)
    if kind is None:
        raise ImageError(f"{name} has a layer of the unknown kind {layer.descriptor.media_type!r}")
    notes = {LAYER_KIND: "base", LAYER_TITLE: name, **layer.descriptor.annotations}
    return replace(layer, descriptor=replace(layer.descriptor, media_type=kind, annotations=notes))
