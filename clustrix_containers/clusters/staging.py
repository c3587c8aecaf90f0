"""Where images are put for a cluster's nodes: this user's image layout directory, or a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clustrix_containers.config.paths import paths
from clustrix_containers.oci.model import Descriptor, Image, Reference
from clustrix_containers.remote.progress import Progress, silent

if TYPE_CHECKING:
    from clustrix_containers.registry.layout import Layout


def layout() -> Layout:
    """The embedded default registry: an image layout directory of this user's own."""
    from clustrix_containers.registry.layout import Layout

    return Layout(paths().data / "images")


def to_layout(image: Image) -> str:
    """Store the image in the layout; layers by reference are fetched, since it must run here.

    Gives ``oci:DIRECTORY@sha256:…``.
    """
    from clustrix_containers.registry import fetch_layers

    store = layout()
    store.push(image, fetch=fetch_layers(paths().cache / "blobs" / "sha256"))
    return f"oci:{store.directory}@{image.digest}"


def to_layout_if_complete(image: Image) -> bool:
    """Store the image in the layout if all of its bytes are on this machine; fetches nothing."""
    if any(layer.blob is None for layer in image.layers):
        return False
    layout().push(image)
    return True


def to_registry(image: Image, repository: str, *, progress: Progress = silent) -> str:
    """Push the image; gives ``repository@sha256:…``, which anybody can run again."""
    from clustrix_containers.registry import Remote

    reference = Reference.parse(repository)
    sent: dict[str, int] = {}
    total = image.size

    def blob_progress(blob: Descriptor, count: int) -> None:
        sent[blob.digest] = count
        progress("pushing", sum(sent.values()), total)

    Remote(reference).push(image, progress=blob_progress)
    return f"{reference.name}@{image.digest}"
