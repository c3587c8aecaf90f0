"""The three kinds of bases: the running interpreter, packed; an image in a registry; a Dockerfile."""

from __future__ import annotations

from typing import Protocol

from clustrix_containers.oci.model import Image, Reference

from .dockerfile import from_dockerfile
from .facts import as_base, check_wheel
from .interpreter import packed


class Images(Protocol):
    """Something that reads an image's manifest and config: a registry, an image layout directory."""

    def image(self, reference: str) -> Image: ...


def from_registry(
    reference: Reference,
    registry: Images,
    *,
    python: str | None = None,
    glibc: str | None = None,
    minor: str | None = None,
) -> Image:
    """An image of a registry as a base; its layers stay where they are.

    ``python`` is the path of its Python (``/usr/bin/python3.11``), where its environment does not
    say, as that of the official Python images does. ``glibc`` is ``2.36``, if it is known.
    ``minor`` is the version that is needed, by default the running Python's. ImageError when the
    base has another minor version, or nobody knows where its Python is.
    """
    image = registry.image(reference.digest or reference.tag or "latest")
    return as_base(image, str(reference), python=python, glibc=glibc, minor=minor)


__all__ = ["Images", "as_base", "check_wheel", "from_dockerfile", "from_registry", "packed"]
