"""Which manifest of an image index is meant."""

from __future__ import annotations

import json

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import (
    CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Platform,
)

LARGEST_MANIFEST = 4 << 20
"""Bytes; what registries must take at least, and more than any image needs."""


def this_platform() -> Platform:
    """Linux on this machine's architecture."""
    return Platform.host()


def media_type(manifest: bytes, name: str) -> str:
    """The media type that a manifest claims or shows; ImageError if it is none that can be read."""
    try:
        parsed = json.loads(manifest)
        found = parsed.get("mediaType")
        if found is None:
            # OCI leaves mediaType out of a manifest and an index at will.
            found = INDEX if "manifests" in parsed else MANIFEST if "layers" in parsed else None
    except (ValueError, AttributeError) as error:
        raise ImageError(f"what {name} holds is no manifest: {error}") from error
    if found not in (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX):
        raise ImageError(
            f"{name} is of a kind that is not read here: {found or 'no media type'}",
            hint="Push it again with a present-day tool: an OCI or a Docker schema 2 image.",
        )
    return str(found)


def choose(index: bytes, platform: Platform, name: str) -> Descriptor:
    """The descriptor of the one manifest for ``platform``; ImageError lists what there is."""
    entries = json.loads(index).get("manifests") or []
    seen = []
    for entry in entries:
        offered = entry.get("platform") or {}
        it = Platform(
            offered.get("os", ""), offered.get("architecture", ""), offered.get("variant")
        )
        if _matches(it, platform) or (len(entries) == 1 and not offered):
            return Descriptor.from_json(entry)
        if it.os not in ("", "unknown"):
            seen.append(str(it))
    raise ImageError(
        f"{name} has no image for {platform}",
        hint=f"It has: {', '.join(seen) or 'none that names its platform'}.",
        platform=str(platform),
    )


def _matches(offered: Platform, wanted: Platform) -> bool:
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    if offered.architecture == "arm64":
        return (offered.variant or "v8") == (wanted.variant or "v8")
    return wanted.variant is None or offered.variant == wanted.variant


def config_of(manifest: bytes, name: str) -> Descriptor:
    """The descriptor of a manifest's config; ImageError if it names none, or one above 4 MiB."""
    try:
        found = Descriptor.from_json({"mediaType": CONFIG, **json.loads(manifest)["config"]})
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"the manifest of {name} names no config: {error}") from error
    if found.size > LARGEST_MANIFEST:
        raise ImageError(f"the config of {name} is too large: {found.size:,} bytes")
    return found
