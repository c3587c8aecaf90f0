"""Small images for tests that need one."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

from clustrix_containers.oci.model import LAYER_GZIP, Descriptor, Image, Layer, Platform, sha256
from clustrix_containers.registry import Layout
from clustrix_containers.worker import contract


def layer(
    files: Mapping[str, bytes],
    kind: str | None = None,
    directory: Path | None = None,
    *,
    mode: int = 0o644,
) -> Layer:
    """A layer with these files of one mode; its blob is a file in ``directory``, or bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = mode
            archive.addfile(info, io.BytesIO(content))
    data = gzip.compress(plain.getvalue(), 0, mtime=0)
    annotations = {contract.LAYER_KIND: kind} if kind else {}
    descriptor = Descriptor(LAYER_GZIP, sha256(data), len(data), annotations)
    blob: bytes | Path = data
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        blob = directory / descriptor.digest.removeprefix("sha256:")
        blob.write_bytes(data)
    return Layer(descriptor, sha256(plain.getvalue()), blob)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compressor makes smaller, the same for the same ``seed``."""
    return random.Random(seed).randbytes(size)


def image(*layers: Layer) -> Image:
    return Image(layers, Platform(), {"Cmd": ["/bin/true"]})


def read_all(layout: Layout, reference: str) -> Image:
    """The image in the layout, after reading and verifying every byte of its layers."""
    found = layout.image(reference)
    for part in found.layers:
        with layout.open_blob(part.descriptor) as blob:
            while blob.read(1 << 20):
                pass
    return found


def tags(layout: Layout) -> list[str]:
    """All tags in the layout's index, sorted; also those that are derived from a digest."""
    index = json.loads((layout.directory / "index.json").read_bytes())
    names = (entry.get("annotations", {}) for entry in index["manifests"])
    return sorted({it["org.opencontainers.image.ref.name"] for it in names if it})
