"""Every image that a test makes goes through ``validate``: all rules, on its actual bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from clustrix_containers.image.validate import validate
from clustrix_containers.registry import Layout

_seen: set[str] = set()
"""Digests of layers that this process has read already."""


def images_of(directory: Path) -> int:
    """Validate all images of a layout; how many there are. A layer's bytes are read once."""
    index = directory / "index.json"
    if not index.exists():
        return 0
    digests = {entry["digest"] for entry in json.loads(index.read_text())["manifests"]}
    layout = Layout(directory)
    for digest in sorted(digests):
        image = layout.image(digest)
        layers = tuple(
            replace(layer, blob=None) if layer.digest in _seen else layer for layer in image.layers
        )
        validate(replace(image, layers=layers))
        _seen.update(layer.digest for layer in image.layers)
    return len(digests)
