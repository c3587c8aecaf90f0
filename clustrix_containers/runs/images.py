"""Images of earlier runs, found again by digest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

from clustrix_containers.clusters import staging
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import ClusterError
from clustrix_containers.oci.model import Image, Reference
from clustrix_containers.worker.contract import ENTRY


def find(text: str) -> Image:
    """An image by digest (or its start) in the layout, or by reference from its registry."""
    from clustrix_containers.registry import Remote, fetch_layers

    layout = staging.layout()
    bare = text.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{6,64}", bare):
        found = layout.find(f"sha256:{bare}")
        if len(found) == 1:
            return layout.image(found[0])
        if found:
            raise ClusterError(f"{text!r} is the start of {len(found)} images: {', '.join(found)}")
        raise ClusterError(
            f"no image {text} here",
            hint="Give a reference with its registry: registry/repository@sha256:…",
        )
    reference = Reference.parse(text)
    image = Remote(reference).image(reference.digest or reference.tag or "latest")
    layout.push(image, fetch=fetch_layers(paths().cache / "blobs" / "sha256"))
    return layout.image(image.digest)


def load_main(digest: str, main: str | None) -> ModuleType:
    """The script that a run's types belong to: this process's own, or that of the image's code."""
    from clustrix_containers.capture import pickling
    from clustrix_containers.image import build as builder

    def source() -> bytes:
        files = builder.read_code(staging.layout().image(digest))
        return files[json.loads(files[ENTRY])["script"]]

    return pickling.script_module(Path(main) if main else None, source)
