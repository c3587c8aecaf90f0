"""Images: what a reference in a pod's spec means, and what of it a node runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clustrix_containers.containers.sandbox import rootfs
from clustrix_containers.oci.model import Image
from tests.fake_kubernetes.container import Mount


@dataclass(frozen=True)
class Unpacked:
    """An image on a node: its root directory, what is mounted in it, and its configuration."""

    root: Path
    mounts: Sequence[Mount] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = ""


Pull = Callable[[str], Unpacked]
"""From an image's reference; :class:`PullError` if it cannot be pulled. Called in a thread."""


class PullError(Exception):
    """The image cannot be pulled; the message is the registry's."""


def unpacked(image: Image, cache: Path) -> Unpacked:
    """An image whose blobs are files of this machine, unpacked below ``cache`` (once)."""
    prepared = rootfs.prepare(image, cache)
    settings = image.settings
    return Unpacked(
        root=prepared.root,
        mounts=[Mount(Path(it.source), it.target, writable=False) for it in prepared.mounts],
        command=[*(settings.get("Entrypoint") or ()), *(settings.get("Cmd") or ())],
        environment=dict(it.split("=", 1) for it in settings.get("Env") or ()),
        directory=settings.get("WorkingDir") or "/",
        user=str(settings.get("User") or ""),
    )
