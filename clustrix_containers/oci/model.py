"""Descriptor, Layer, Image, Reference: frozen values of the OCI image specification.

Formats: https://github.com/opencontainers/image-spec (manifest, config, descriptor,
image layout) and https://github.com/distribution/reference (references).
All JSON is canonical: sorted keys, no white space, UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

OCI_LAYER_TYPES = {
    LAYER_TAR: LAYER_TAR,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    DOCKER_LAYER: LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}
"""The OCI media type of every kind of layer that can be read; the bytes are the same."""

# OCI's name (Go's GOARCH), the kernel's (uname -m, PEP 508 and wheel tags), ELF's e_machine.
_ARCHITECTURES = (
    ("386", "i686", 3),
    ("ppc64le", "ppc64le", 21),
    ("s390x", "s390x", 22),
    ("arm", "armv7l", 40),
    ("amd64", "x86_64", 62),
    ("arm64", "aarch64", 183),
    ("riscv64", "riscv64", 243),
)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """The digest of some bytes, as ``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """The digest itself if it is a well-formed sha256 digest, else an ImageError."""
    if not _DIGEST.match(digest):
        raise ImageError(
            f"not a sha256 digest: {digest!r}", hint="Expected sha256:<64 hex digits>."
        )
    return digest


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]`` in Go's terms: linux/amd64, linux/arm64."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str | None = None

    @classmethod
    def host(cls) -> Platform:
        """Linux on this machine's processor."""
        name = os.uname().machine.lower()
        return cls("linux", next((go for go, kernel, _ in _ARCHITECTURES if kernel == name), name))

    @property
    def machine(self) -> str:
        """What Linux, wheel tags and PEP 508 call the architecture: ``x86_64``, ``aarch64``."""
        name = self.architecture
        return next((kernel for go, kernel, _ in _ARCHITECTURES if go == name), name)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def elf_architecture(machine: int) -> str:
    """OCI's name for the ``e_machine`` of an ELF file."""
    return next((go for go, _, elf in _ARCHITECTURES if elf == machine), f"machine {machine}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is (``media_type``), its ``digest``, and its ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        out = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**out, "annotations": dict(self.annotations)} if self.annotations else out

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
        """Read a reference as ``docker pull`` does; ImageError names the offending part."""
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
                hint="Expected [registry/]repository[:tag][@sha256:…], the repository in lower case.",
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
    reference, whose blob is in the repository ``origin``.
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

    def describe(self, **fields: Any) -> Layer:
        """The layer with these fields of its descriptor replaced."""
        return replace(self, descriptor=replace(self.descriptor, **fields))


@dataclass(frozen=True, slots=True)
class Image:
    """A config and layers. ``append`` and ``configure`` return new ones; ``digest`` is its identity.

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
        created = "1970-01-01T00:00:00Z"
        return canonical(
            {
                **{name: value for name, value in asdict(self.platform).items() if value},
                "created": created,
                "config": dict(self.settings),
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
                "history": [
                    {"created": created, "created_by": layer.created_by} for layer in self.layers
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
        return canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.config_descriptor.to_json(),
                "layers": [layer.descriptor.to_json() for layer in self.layers],
                **({"annotations": dict(self.annotations)} if self.annotations else {}),
            }
        )

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
        new = replace(self, raw_config=None, raw_manifest=None, **fields)
        return replace(new, layers=tuple(_with_oci_type(layer) for layer in new.layers))

    @classmethod
    def read(cls, manifest: bytes, config: bytes, *, origin: Reference | None = None) -> Image:
        """An image from the bytes of its manifest and config; its layers refer to ``origin``."""
        try:
            parsed, conf = json.loads(manifest), json.loads(config)
            diff_ids = [check_digest(item) for item in conf["rootfs"]["diff_ids"]]
            descriptors = [Descriptor.from_json(item) for item in parsed["layers"]]
            history = created_by(conf, len(descriptors))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ImageError(f"not an image manifest and config: {error}") from error
        if len(diff_ids) != len(descriptors):
            raise ImageError(
                f"the config lists {len(diff_ids)} layers, the manifest {len(descriptors)}"
            )
        layers = tuple(
            Layer(descriptor, diff_id, None, origin, command)
            for descriptor, diff_id, command in zip(descriptors, diff_ids, history, strict=True)
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


def created_by(config: Mapping[str, Any], count: int) -> list[str]:
    """The ``created_by`` of each of ``count`` layers, from the history in an image config."""
    history = [
        str(item.get("created_by", ""))
        for item in config.get("history") or []
        if not item.get("empty_layer")
    ]
    return history if len(history) == count else [""] * count


def _with_oci_type(layer: Layer) -> Layer:
    # umoci refuses Docker's media types in an OCI manifest.
    current = layer.descriptor.media_type
    return layer.describe(media_type=OCI_LAYER_TYPES.get(current, current))
