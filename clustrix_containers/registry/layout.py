"""An OCI image layout directory: the registry that needs no server.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
Beside ``oci-layout``, ``index.json`` and ``blobs/`` there are ``.lock`` and ``.tmp/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.model import (
    DOCKER_INDEX,
    INDEX,
    Descriptor,
    Image,
    Layer,
    Platform,
    canonical,
    check_digest,
)
from clustrix_containers.storage.locks import locked

from .blobs import Blobs, clear_disk_errors, write_atomically
from .index import LARGEST_MANIFEST, choose, config_of, media_type, this_platform
from .protocol import digest_tag
from .stream import BLOCK, verified

REF_NAME = "org.opencontainers.image.ref.name"

Fetch = Callable[[Layer], Path]
"""Brings a layer by reference to this machine: the file that holds its blob."""


class Layout:
    """The image layout in ``directory``, which is made by the first push.

    Safe for many processes and threads at once, on NFS too.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._blobs = Blobs(self.directory)

    def __repr__(self) -> str:
        return f"Layout({str(self.directory)!r})"

    # Writing

    def push(
        self, image: Image, tag: str | None = None, *, fetch: Fetch | None = None
    ) -> Descriptor:
        """Store what is lacking of ``image``; its manifest's descriptor.

        It gets the tag :func:`digest_tag` of its digest, and ``tag`` if given. Blobs are
        hard links to the layers' files where the file system allows, else copies.
        A layout holds every blob, or no other tool could read it: for a layer by
        reference that it lacks, ``fetch(layer)`` gives the file; without ``fetch``
        that is an ImageError. Bytes that are not their digest's: DigestMismatch.
        """
        manifest = image.manifest
        descriptor = Descriptor(image.media_type, image.digest, len(manifest))
        names = [digest_tag(image.digest), *([tag] if tag is not None else [])]
        with clear_disk_errors(f"the image {image.digest}", self.directory):
            self._prepare()
            self._write(image, fetch)
            with self._locked():
                # A prune may have taken an old blob between the look and the lock.
                if not self._complete(image):
                    self._write(image, fetch)
                self._name(descriptor, names)
        return descriptor

    def delete(self, reference: str) -> None:
        """Forget a tag, or with a digest the image and all its tags; blobs go with :meth:`prune`."""
        with clear_disk_errors("index.json", self.directory), self._locked():
            index = self._index()
            entries = index["manifests"]
            if reference.startswith("sha256:"):
                check_digest(reference)
                kept = [entry for entry in entries if entry.get("digest") != reference]
            else:
                kept = [entry for entry in entries if _ref_name(entry) != reference]
            if len(kept) == len(entries):
                raise self._unknown(reference)
            self._write_index({**index, "manifests": kept})

    def prune(self, keep: Collection[str] | None = None, *, grace: float = 3600.0) -> int:
        """Remove the blobs that no image needs; the bytes that this gave back.

        ``keep``: tags and digests; images that are none of these go too (``None``: all
        images stay). What was pushed or written in the last ``grace`` seconds stays in
        any case, so a push at the same time is safe.
        """
        if not self.directory.is_dir():
            return 0
        with clear_disk_errors("index.json", self.directory), self._locked():
            index = self._index()
            entries = [entry for entry in index["manifests"] if self._present(entry)]
            if keep is not None:
                entries = self._kept(entries, set(keep), grace)
            if entries != index["manifests"]:
                self._write_index({**index, "manifests": entries})
            referenced: set[str] = set()
            for entry in entries:
                referenced.update(self._reaches(Descriptor.from_json(entry)))
            return self._blobs.sweep(referenced, grace)

    # Reading

    def image(self, reference: str, platform: Platform | None = None) -> Image:
        """The image under a tag or a digest; its layers' ``blob`` are files in this layout.

        ``platform`` chooses from an index; ``None`` is this machine's own. A blob of the
        wrong size is thrown away and is an ImageError, like one that is missing.
        """
        name = f"{self.directory} {reference}"
        descriptor = self._find(reference)
        manifest = self._read(descriptor)
        for _ in range(3):
            if media_type(manifest, name) not in (INDEX, DOCKER_INDEX):
                break
            descriptor = choose(manifest, platform or this_platform(), name)
            manifest = self._read(descriptor)
        else:
            raise ImageError(f"{name} is an index of indexes of indexes")
        config = self._read(config_of(manifest, name))
        image = Image.read(manifest, config)
        for layer in image.layers:
            if not self._blobs.holds(layer.descriptor):
                raise self._missing(layer.digest)
        return replace(
            image,
            layers=tuple(
                replace(layer, blob=self._blobs.path(layer.digest)) for layer in image.layers
            ),
        )

    def blob(self, digest: str) -> Path:
        """The file of a blob, as it lies there; ImageError if it does not."""
        path = self._blobs.path(digest)
        if not path.is_file():
            raise self._missing(digest)
        return path

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A blob's bytes. Wrong ones are thrown away and raise DigestMismatch before their end."""
        path = self.blob(descriptor.digest)

        def discard() -> None:
            self._blobs.discard(descriptor.digest)

        return verified(path.open("rb"), descriptor, str(self.directory), discard)

    def has(self, digest: str) -> bool:
        """Whether a blob or a manifest is there."""
        return self._blobs.path(digest).is_file()

    def tags(self) -> list[str]:
        """All tags, sorted; also those that are derived from a digest."""
        return sorted({name for entry in self._index()["manifests"] if (name := _ref_name(entry))})

    def find(self, start: str) -> list[str]:
        """The digests of the images here that start with ``start`` (``sha256:3fa9…``), sorted."""
        digests = {str(entry.get("digest")) for entry in self._index()["manifests"]}
        return sorted(digest for digest in digests if digest.startswith(start))

    def verify(self, reference: str, platform: Platform | None = None) -> Image:
        """Like :meth:`image`, after reading and hashing every byte of it."""
        image = self.image(reference, platform)
        for layer in image.layers:
            with self.open_blob(layer.descriptor) as blob:
                while blob.read(BLOCK):
                    pass
        return image

    # Inside

    def _prepare(self) -> None:
        marker = self.directory / "oci-layout"
        if not marker.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            version = canonical({"imageLayoutVersion": "1.0.0"})
            write_atomically(marker, version, self._blobs.temporary)

    def _locked(self) -> Any:
        return locked(self.directory / ".lock")

    def _write(self, image: Image, fetch: Fetch | None) -> None:
        self._blobs.add_bytes(image.config_descriptor.digest, image.config)
        for layer in {layer.digest: layer for layer in image.layers}.values():
            if self._blobs.holds(layer.descriptor) and self._blobs.touch(layer.digest):
                continue
            blob = layer.blob
            if blob is None:
                blob = self._fetched(layer, fetch)
            if isinstance(blob, bytes):
                self._blobs.add_bytes(layer.digest, blob)
            else:
                self._blobs.add_file(layer.descriptor, blob)
        self._blobs.add_bytes(image.digest, image.manifest)

    def _fetched(self, layer: Layer, fetch: Fetch | None) -> Path:
        # Somebody else's blob cannot be made young again, but it can be linked anew.
        if self._blobs.holds(layer.descriptor):
            return self._blobs.path(layer.digest)
        if fetch is None:
            origin = f" of {layer.origin}" if layer.origin else ""
            raise ImageError(
                f"the layer {layer.digest}{origin} is known by reference only,"
                f" and the layout {self.directory} does not hold it",
                hint="Push to a registry, or let the push fetch it (fetch=…).",
                digest=layer.digest,
            )
        return fetch(layer)

    def _complete(self, image: Image) -> bool:
        parts = [image.config_descriptor, *(layer.descriptor for layer in image.layers)]
        return self.has(image.digest) and all(self._blobs.holds(part) for part in parts)

    def _name(self, descriptor: Descriptor, names: list[str]) -> None:
        index = self._index()
        entries = [entry for entry in index["manifests"] if _ref_name(entry) not in names]
        entries += [{**descriptor.to_json(), "annotations": {REF_NAME: name}} for name in names]
        if entries != index["manifests"]:
            self._write_index({**index, "manifests": entries})

    def _index(self) -> dict[str, Any]:
        path = self.directory / "index.json"
        try:
            index = json.loads(path.read_bytes())
            if not isinstance(index["manifests"], list):
                raise TypeError("`manifests` is not a list")
        except (FileNotFoundError, NotADirectoryError):
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(
                f"{path} is not an image index: {error}",
                hint=f"Move {self.directory} away and build the images again.",
                path=path,
            ) from error
        return dict(index)

    def _write_index(self, index: dict[str, Any]) -> None:
        write_atomically(self.directory / "index.json", canonical(index), self._blobs.temporary)

    def _find(self, reference: str) -> Descriptor:
        tag, _, digest = reference.rpartition("@") if "@" in reference else (reference, "", "")
        if tag.startswith("sha256:"):
            tag, digest = "", tag
        if digest:
            path = self._blobs.path(digest)
            if path.is_file():
                return Descriptor("", digest, path.stat().st_size)
        else:
            for entry in reversed(self._index()["manifests"]):
                if _ref_name(entry) == tag:
                    return Descriptor.from_json(entry)
        raise self._unknown(reference)

    def _read(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > LARGEST_MANIFEST:
            raise ImageError(f"{descriptor.digest} is too large for a manifest or a config")
        with self.open_blob(descriptor) as blob:
            return blob.read()

    def _kept(self, entries: list[Any], keep: set[str], grace: float) -> list[Any]:
        digests = {entry["digest"] for entry in entries if _ref_name(entry) in keep}
        wanted = digests | keep
        oldest = self._blobs.now() - grace
        return [
            entry
            for entry in entries
            if entry["digest"] in wanted
            or self._blobs.path(entry["digest"]).stat().st_ctime > oldest
        ]

    def _present(self, entry: Any) -> bool:
        try:
            return self.has(Descriptor.from_json(entry).digest)
        except ImageError:
            return False

    def _reaches(self, descriptor: Descriptor) -> Iterator[str]:
        """The digest itself and all that its manifest refers to."""
        yield descriptor.digest
        try:
            parsed = json.loads(self._read(descriptor))
            for part in parsed.get("manifests") or ():
                inner = Descriptor.from_json(part)
                if self.has(inner.digest):
                    yield from self._reaches(inner)
            for part in [*filter(None, [parsed.get("config")]), *(parsed.get("layers") or ())]:
                yield Descriptor.from_json(part).digest
        except (ValueError, AttributeError, DigestMismatch):
            # Not a manifest, or a broken one that has just been thrown away.
            return

    def _missing(self, digest: str) -> ImageError:
        return ImageError(
            f"the blob {digest} is not in {self.directory}",
            hint="Build the image again.",
            digest=digest,
            path=self.directory,
        )

    def _unknown(self, reference: str) -> ImageError:
        return ImageError(
            f"no image {reference} in {self.directory}",
            hint="Layout.tags() names those that are there." if self.directory.is_dir() else None,
            reference=reference,
            path=self.directory,
        )


def _ref_name(entry: Any) -> str | None:
    name = (entry.get("annotations") or {}).get(REF_NAME)
    return str(name) if name is not None else None
