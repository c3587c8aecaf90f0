"""Base images: their labels say where their Python is, which version, and which glibc.

An image of a registry gets the labels here, from its environment variables or from what the
user declares; the packed interpreter and an image built from a Dockerfile are inspected.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import OCI_LAYER_TYPES, Image
from clustrix_containers.worker.contract import LABEL_PYTHON, LAYER_KIND, LAYER_TITLE

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The running Python's minor version, ``3.12``."""

LABEL_INTERPRETER = "io.clustrix-containers.interpreter"
"""Label: the path of the base's Python."""

LABEL_GLIBC = "io.clustrix-containers.glibc"
"""Label: the base's version of glibc, ``2.36``."""

LIBRARIES = "io.clustrix-containers.libraries"
"""Annotation on a packed base's layer: its shared libraries, separated by blanks."""


def as_base(
    image: Image,
    name: str,
    *,
    python: str | None = None,
    version: str | None = None,
    glibc: str | None = None,
) -> Image:
    """An image with the labels of a base and with OCI media types; its blobs stay as they are.

    ``python`` is the path of its Python (``/usr/bin/python3.11``), where its environment variables
    do not name it as the official Python images' do; ``version`` that Python's version, if known.
    ImageError if it is another minor version than the running Python's, or cannot be found.
    """
    interpreter, version = (python, version) if python and version else _find(image, name, python)
    if ".".join(version.split(".")[:2]) != MINOR:
        raise ImageError(
            f"{name} has Python {version}, and this is Python {MINOR}",
            hint=f"Use a base with Python {MINOR}: base='python:{MINOR}-slim@sha256:…'.",
            base=version,
            needed=MINOR,
        )
    labels = {
        **(image.settings.get("Labels") or {}),
        LABEL_INTERPRETER: interpreter,
        LABEL_PYTHON: version,
    }
    if glibc:
        labels[LABEL_GLIBC] = glibc
    layers = []
    for layer in image.layers:
        descriptor = layer.descriptor
        if descriptor.media_type not in OCI_LAYER_TYPES:
            raise ImageError(f"{name} has a layer of the unknown type {descriptor.media_type!r}")
        annotations = {LAYER_KIND: "base", LAYER_TITLE: name, **descriptor.annotations}
        layers.append(layer.describe(annotations=annotations))
    return replace(image, layers=tuple(layers)).configure(Labels=labels)


def _find(image: Image, name: str, python: str | None) -> tuple[str, str]:
    """Path and version of the image's Python."""
    env = dict(item.partition("=")[::2] for item in image.settings.get("Env") or [])
    labels = image.settings.get("Labels") or {}
    if python:
        found = re.search(r"python(\d+\.\d+)$", python)
        version = found[1] if found else env.get("PYTHON_VERSION") or labels.get(LABEL_PYTHON)
        if not python.startswith("/") or not version:
            raise ImageError(
                f"not the path of a Python in a base: {python!r}",
                hint="Expected an absolute path with the minor version: /usr/bin/python3.11.",
            )
        return python, version
    if LABEL_INTERPRETER in labels and LABEL_PYTHON in labels:
        return labels[LABEL_INTERPRETER], labels[LABEL_PYTHON]
    version = env.get("PYTHON_VERSION", "")
    if re.match(r"\d+\.\d+", version):
        # The official Python images, and those made from them.
        return f"/usr/local/bin/python{'.'.join(version.split('.')[:2])}", version
    raise ImageError(
        f"cannot find the Python of {name}",
        hint="Name its path: python='/usr/bin/python3.11'. A base without Python cannot be used.",
    )
