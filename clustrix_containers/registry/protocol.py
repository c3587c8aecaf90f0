"""What a Layout and a Remote have in common."""

from __future__ import annotations

from typing import BinaryIO, Protocol

from clustrix_containers.oci.model import Descriptor, Image, Platform


class Registry(Protocol):
    """A place where images lie, known by tag and by digest."""

    def push(self, image: Image, tag: str | None = None) -> Descriptor:
        """Store what is lacking of an image; its manifest's descriptor."""
        ...

    def image(self, reference: str, platform: Platform | None = None) -> Image:
        """The image under a tag or a digest."""
        ...

    def has(self, digest: str) -> bool:
        """Whether a manifest or a blob is there."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A blob's bytes; reading the last of them raises DigestMismatch if they are wrong."""
        ...

    def tags(self) -> list[str]:
        """All tags, sorted."""
        ...

    def delete(self, reference: str) -> None:
        """Forget a tag or an image."""
        ...


def digest_tag(digest: str) -> str:
    """The tag under which every image is stored, since registries collect what has none.

    Not plain ``sha256-…``: that name belongs to an image's referrers
    (https://github.com/opencontainers/distribution-spec, "Referrers Tag Schema").
    """
    return "cx-" + digest.replace(":", "-")
