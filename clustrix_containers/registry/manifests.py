"""Manifests and image indexes: which one is meant, and what it refers to.

Format: https://github.com/opencontainers/image-spec/blob/main/image-index.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import (
    CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Platform,
    sha256,
)

MAX_MANIFEST = 4 << 20
"""Bytes; what registries must take at least, and more than any image needs."""

_MAX_DEPTH = 2


def digest_tag(digest: str) -> str:
    """The tag under which every image is stored: registries collect what has none.

    Not plain ``sha256-…``: that name belongs to an image's referrers
    (https://github.com/opencontainers/distribution-spec, "Referrers Tag Schema").
    """
    return "cx-" + digest.replace(":", "-")


def resolve(
    manifest: bytes, platform: Platform | None, name: str, read: Callable[[Descriptor], bytes]
) -> tuple[bytes, str]:
    """The manifest for ``platform`` and its digest, where ``manifest`` may be an index.

    ``None`` is Linux on this machine's architecture; ``read`` gives a manifest by descriptor;
    ``name`` is what messages call it. ImageError if there is none for the platform.
    """
    digest = sha256(manifest)
    for _ in range(_MAX_DEPTH + 1):
        if _media_type(manifest, name) in (MANIFEST, DOCKER_MANIFEST):
            return manifest, digest
        chosen = _choose(manifest, platform or Platform.host(), name)
        digest, manifest = chosen.digest, read(chosen)
    raise ImageError(f"{name}: image indexes are nested more than {_MAX_DEPTH} deep")


def config_of(manifest: bytes, name: str) -> Descriptor:
    """The descriptor of a manifest's config; ImageError if it has none, or one above 4 MiB."""
    try:
        found = Descriptor.from_json({"mediaType": CONFIG, **json.loads(manifest)["config"]})
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"the manifest of {name} has no valid config: {error}") from error
    if found.size > MAX_MANIFEST:
        raise ImageError(f"the config of {name} is too large: {found.size:,} bytes")
    return found


def _media_type(manifest: bytes, name: str) -> str:
    try:
        parsed = json.loads(manifest)
        found = parsed.get("mediaType")
        if found is None:
            # OCI makes mediaType optional in manifests and indexes.
            found = INDEX if "manifests" in parsed else MANIFEST if "layers" in parsed else None
    except (ValueError, AttributeError) as error:
        raise ImageError(f"{name} is not a manifest: {error}") from error
    if found not in (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX):
        raise ImageError(
            f"{name} has an unsupported media type: {found or 'none'}",
            hint="Push it again as an OCI or a Docker schema 2 image.",
        )
    return str(found)


def _choose(index: bytes, platform: Platform, name: str) -> Descriptor:
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
        hint=f"Available platforms: {', '.join(seen) or 'none'}.",
        platform=str(platform),
    )


def _matches(offered: Platform, wanted: Platform) -> bool:
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    if offered.architecture == "arm64":
        return (offered.variant or "v8") == (wanted.variant or "v8")
    return wanted.variant is None or offered.variant == wanted.variant
