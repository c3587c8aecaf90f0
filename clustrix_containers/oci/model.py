"""Descriptor, Layer, Image, Reference: frozen values of the OCI image specification.

Formats: https://github.com/opencontainers/image-spec (manifest, config, descriptor,
image layout) and https://github.com/distribution/reference (references).
All JSON is canonical: sorted keys, no white space, UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ImageError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_OCI_WORDS = {
    DOCKER_LAYER: LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def canonical(value: Any) -> bytes:
    """JSON with one spelling: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """The digest of some bytes, as ``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """The digest itself if it is a well-formed sha256 digest, else an ImageError."""
    if not _DIGEST.match(digest):
        raise ImageError(
            f"not a sha256 digest: {digest!r}", hint="It reads sha256:<64 hex digits>."
        )
    return digest


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]`` in Go's words: linux/amd64, linux/arm64."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is (``media_type``), its ``digest``, and its ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return out

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        try:
            return cls(
                str(value["mediaType"]),
                check_digest(value["digest"]),
                int(value["size"]),
                dict(value.get("annotations") or {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(f"not a descriptor: {value!r}") from error


@dataclass(frozen=True, slots=True)
class Reference:
    """``registry/repository[:tag][@digest]``; short names mean Docker Hub, as with docker."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as ``docker pull`` does; ImageError names what is wrong with it."""
        rest, digest, tag = text, None, None
        if "@" in rest:
            rest, digest = rest.split("@", 1)
            check_digest(digest)
        head, slash, last = rest.rpartition("/")
        if ":" in last:
            last, tag = last.split(":", 1)
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag):
                raise ImageError(f"not a tag: {tag!r} in {text!r}")
        name = f"{head}{slash}{last}"
        first, slash, remainder = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, repository = first, remainder
        else:
            registry, repository = "docker.io", name
        if registry in ("docker.io", "index.docker.io"):
            registry = "docker.io"
            repository = repository if "/" in repository else f"library/{repository}"
        component = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
        if not re.fullmatch(rf"{component}(?:/{component})*", repository):
            raise ImageError(
                f"not an image reference: {text!r}",
                hint="It reads [registry/]repository[:tag][@sha256:…], the repository in lower case.",
            )
        if not re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?", registry):
            raise ImageError(f"not a registry host: {registry!r} in {text!r}")
        return cls(registry, repository, tag, digest)

    @property
    def name(self) -> str:
        """``registry/repository`` without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its blob's descriptor, the digest of its tar (``diff_id``), and where the bytes are.

    ``blob`` is a file on this machine, the bytes themselves, or ``None`` for a layer by
    reference, which lies in the repository ``origin``.
    """

    descriptor: Descriptor
    diff_id: str
    blob: Path | bytes | None = None
    origin: Reference | None = None
    created_by: str = ""

    @property
    def digest(self) -> str:
        return self.descriptor.digest

    @property
    def size(self) -> int:
        return self.descriptor.size


@dataclass(frozen=True, slots=True)
class Image:
    """A config and layers. ``append`` and ``configure`` give new ones; ``digest`` is its identity.

    ``settings`` is the image config's ``config`` object (Env, Entrypoint, Labels, …).
    ``raw_config`` and ``raw_manifest`` are the exact bytes of an image that was read from
    somewhere: they keep its digest. Any change drops them.
    """

    layers: tuple[Layer, ...] = ()
    platform: Platform = Platform()
    settings: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    raw_config: bytes | None = None
    raw_manifest: bytes | None = None

    @property
    def config(self) -> bytes:
        """The image config, canonical unless it was read from somewhere."""
        if self.raw_config is not None:
            return self.raw_config
        platform: dict[str, Any] = {
            "os": self.platform.os,
            "architecture": self.platform.architecture,
        }
        if self.platform.variant:
            platform["variant"] = self.platform.variant
        return canonical(
            {
                **platform,
                "created": "1970-01-01T00:00:00Z",
                "config": dict(self.settings),
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
                "history": [
                    {"created": "1970-01-01T00:00:00Z", "created_by": layer.created_by}
                    for layer in self.layers
                ],
            }
        )

    @property
    def config_descriptor(self) -> Descriptor:
        config = self.config
        return Descriptor(CONFIG, sha256(config), len(config))

    @property
    def manifest(self) -> bytes:
        """The image manifest, canonical unless it was read from somewhere."""
        if self.raw_manifest is not None:
            return self.raw_manifest
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config_descriptor.to_json(),
            "layers": [layer.descriptor.to_json() for layer in self.layers],
        }
        if self.annotations:
            manifest["annotations"] = dict(self.annotations)
        return canonical(manifest)

    @property
    def media_type(self) -> str:
        if self.raw_manifest is None:
            return MANIFEST
        return str(json.loads(self.raw_manifest).get("mediaType", MANIFEST))

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of all layers as they are stored and pulled."""
        return sum(layer.size for layer in self.layers)

    def append(self, *layers: Layer) -> Image:
        return self._changed(layers=(*self.layers, *layers))

    def configure(self, **settings: Any) -> Image:
        """A new image with these keys of the config's ``config`` object (Env, Labels, …) replaced."""
        return self._changed(settings={**self.settings, **settings})

    def _changed(self, **fields: Any) -> Image:
        """A new image whose manifest and config are made anew: in OCI's words, also for Docker's layers."""
        new = replace(self, raw_config=None, raw_manifest=None, **fields)
        return replace(new, layers=tuple(_in_oci_words(layer) for layer in new.layers))

    @classmethod
    def read(cls, manifest: bytes, config: bytes, *, origin: Reference | None = None) -> Image:
        """An image from the bytes of its manifest and config; layers are by reference to ``origin``."""
        try:
            parsed, conf = json.loads(manifest), json.loads(config)
            diff_ids = conf["rootfs"]["diff_ids"]
            descriptors = [Descriptor.from_json(item) for item in parsed["layers"]]
            history = [
                str(item.get("created_by", ""))
                for item in conf.get("history") or []
                if not item.get("empty_layer")
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ImageError(f"not an image manifest and config: {error}") from error
        if len(diff_ids) != len(descriptors):
            raise ImageError(
                f"the config names {len(diff_ids)} layers, the manifest {len(descriptors)}"
            )
        if len(history) != len(descriptors):
            history = [""] * len(descriptors)
        layers = tuple(
            Layer(descriptor, check_digest(diff_id), None, origin, created_by)
            for descriptor, diff_id, created_by in zip(descriptors, diff_ids, history, strict=True)
        )
        return cls(
            layers,
            Platform(
                conf.get("os", "linux"), conf.get("architecture", "amd64"), conf.get("variant")
            ),
            conf.get("config") or {},
            parsed.get("annotations") or {},
            config,
            manifest,
        )

    def kinds(self, annotation: str, *values: str) -> Iterator[Layer]:
        """The layers whose descriptor carries one of these values under ``annotation``."""
        return (
            layer for layer in self.layers if layer.descriptor.annotations.get(annotation) in values
        )


def _in_oci_words(layer: Layer) -> Layer:
    # umoci refuses Docker's media types in an OCI manifest; the bytes are the same.
    media_type = _OCI_WORDS.get(layer.descriptor.media_type)
    if media_type is None:
        return layer
    return replace(layer, descriptor=replace(layer.descriptor, media_type=media_type))
