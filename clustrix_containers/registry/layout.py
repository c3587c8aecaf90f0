"""An OCI image layout directory: a registry without a server.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
Besides ``oci-layout``, ``index.json`` and ``blobs/`` it has ``.lock`` and ``.tmp/``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from clustrix_containers.errors import DigestMismatch, ImageError
from clustrix_containers.oci.model import INDEX, Descriptor, Image, Layer, Platform, canonical
from clustrix_containers.storage.locks import locked

from .blobs import Blobs, disk_errors, verified
from .manifests import MAX_MANIFEST, config_of, digest_tag, resolve

REF_NAME = "org.opencontainers.image.ref.name"

Fetch = Callable[[Layer], Path]
"""Downloads a layer that is known by reference; the file with its blob."""


class Layout:
    """The image layout in ``directory``, which the first push creates.

    Safe for concurrent processes and threads, on NFS too.
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
        """Store what is missing of ``image``; its manifest's descriptor.

        It gets the tag :func:`digest_tag` of its digest, and ``tag`` if given. Blobs are
        hard links to the layers' files where the file system allows it, else copies.
        A layout holds every blob, or other tools could not read it: for a missing layer that
        is known by reference, ``fetch(layer)`` gives the file; without ``fetch`` that is an
        ImageError. A blob that does not match its digest is a DigestMismatch.
        """
        manifest = image.manifest
        descriptor = Descriptor(image.media_type, image.digest, len(manifest))
        names = [digest_tag(image.digest), *([tag] if tag is not None else [])]
        with disk_errors(f"the image {image.digest}", self.directory):
            marker = self.directory / "oci-layout"
            if not marker.exists():
                self._blobs.write(marker, canonical({"imageLayoutVersion": "1.0.0"}))
            self._write(image, fetch)
            parts = [descriptor, image.config_descriptor, *(it.descriptor for it in image.layers)]
            with locked(self.directory / ".lock"):
                # A prune may have removed an old blob between the check and the lock.
                if not all(map(self._blobs.holds, parts)):
                    self._write(image, fetch)
                self._name(descriptor, names)
        return descriptor

    def prune(self, keep: Collection[str] | None = None, *, grace: float = 3600.0) -> int:
        """Remove the blobs that no image refers to; the bytes freed.

        ``keep``: tags and digests; other images are removed too (``None``: no image is).
        Whatever was pushed in the last ``grace`` seconds stays, so a concurrent push is safe.
        """
        if not self.directory.is_dir():
            return 0
        with disk_errors("index.json", self.directory), locked(self.directory / ".lock"):
            index = self._index()
            entries = [entry for entry in index["manifests"] if self._present(entry)]
            if keep is not None:
                entries = self._kept(entries, set(keep), grace)
            self._write_index(index, entries)
            reached = (self._reaches(Descriptor.from_json(entry)) for entry in entries)
            return self._blobs.sweep(set().union(*reached), grace)

    # Reading

    def image(self, reference: str, platform: Platform | None = None) -> Image:
        """The image under a tag or a digest; its layers' ``blob`` are files in this layout.

        ``platform`` selects from an index; ``None`` is this machine's own. A missing blob is an
        ImageError, and so is one of the wrong size, which is removed.
        """
        name = f"{self.directory} {reference}"
        manifest, _ = resolve(self._read(self._find(reference)), platform, name, self._read)
        image = Image.read(manifest, self._read(config_of(manifest, name)))
        layers = []
        for layer in image.layers:
            if not self._blobs.holds(layer.descriptor):
                raise self._missing(layer.digest)
            layers.append(replace(layer, blob=self._blobs.path(layer.digest)))
        return replace(image, layers=tuple(layers))

    def blob(self, digest: str) -> Path:
        """The file of a blob, not verified; ImageError if it does not exist."""
        if not self.has(digest):
            raise self._missing(digest)
        return self._blobs.path(digest)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A blob's bytes. A damaged blob raises DigestMismatch before its end, and is removed."""
        discard = partial(self._blobs.discard, descriptor.digest)
        file = self.blob(descriptor.digest).open("rb")
        return verified(file, descriptor, str(self.directory), discard)

    def has(self, digest: str) -> bool:
        """Whether a blob or a manifest exists."""
        return self._blobs.path(digest).is_file()

    def find(self, prefix: str) -> list[str]:
        """The digests of the images here that start with ``prefix`` (``sha256:3fa9…``), sorted."""
        digests = {str(entry.get("digest")) for entry in self._index()["manifests"]}
        return sorted(digest for digest in digests if digest.startswith(prefix))

    # Internals

    def _write(self, image: Image, fetch: Fetch | None) -> None:
        self._blobs.add_bytes(image.config_descriptor.digest, image.config)
        for layer in {layer.digest: layer for layer in image.layers}.values():
            if self._blobs.holds(layer.descriptor) and self._blobs.touch(layer.digest):
                continue
            blob = self._fetched(layer, fetch) if layer.blob is None else layer.blob
            if isinstance(blob, bytes):
                self._blobs.add_bytes(layer.digest, blob)
            else:
                self._blobs.add_file(layer.descriptor, blob)
        self._blobs.add_bytes(image.digest, image.manifest)

    def _fetched(self, layer: Layer, fetch: Fetch | None) -> Path:
        # Another user's blob cannot be touched, but it can be linked anew.
        if self._blobs.holds(layer.descriptor):
            return self._blobs.path(layer.digest)
        if fetch is None:
            origin = f" of {layer.origin}" if layer.origin else ""
            raise ImageError(
                f"the layer {layer.digest}{origin} is known by reference only,"
                f" and the layout {self.directory} does not contain it",
                hint="Push to a registry, or pass fetch=… to download it.",
                digest=layer.digest,
            )
        return fetch(layer)

    def _name(self, descriptor: Descriptor, names: list[str]) -> None:
        index = self._index()
        entries = [entry for entry in index["manifests"] if _ref_name(entry) not in names]
        entries += [{**descriptor.to_json(), "annotations": {REF_NAME: name}} for name in names]
        self._write_index(index, entries)

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

    def _write_index(self, index: dict[str, Any], entries: list[Any]) -> None:
        if entries != index["manifests"]:
            changed = canonical({**index, "manifests": entries})
            self._blobs.write(self.directory / "index.json", changed)

    def _find(self, reference: str) -> Descriptor:
        wanted = reference.rpartition("@")[2]
        if "@" in reference or wanted.startswith("sha256:"):
            path = self._blobs.path(wanted)
            if path.is_file():
                return Descriptor("", wanted, path.stat().st_size)
        else:
            for entry in reversed(self._index()["manifests"]):
                if _ref_name(entry) == wanted:
                    return Descriptor.from_json(entry)
        raise ImageError(
            f"no image {reference} in {self.directory}",
            hint="Build the image again: it may have been pruned.",
            reference=reference,
            path=self.directory,
        )

    def _read(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_MANIFEST:
            raise ImageError(f"{descriptor.digest} is too large for a manifest or a config")
        with self.open_blob(descriptor) as blob:
            return blob.read()

    def _kept(self, entries: list[Any], keep: set[str], grace: float) -> list[Any]:
        wanted = keep | {entry["digest"] for entry in entries if _ref_name(entry) in keep}
        oldest = self._blobs.now() - grace

        def is_kept(digest: str) -> bool:
            return digest in wanted or self._blobs.path(digest).stat().st_ctime > oldest

        return [entry for entry in entries if is_kept(entry["digest"])]

    def _present(self, entry: Any) -> bool:
        with contextlib.suppress(ImageError):
            return self.has(Descriptor.from_json(entry).digest)
        return False

    def _reaches(self, descriptor: Descriptor) -> Iterator[str]:
        """The digest itself and everything that its manifest refers to."""
        yield descriptor.digest
        # What is not a manifest, or a damaged one (which has just been removed), refers to nothing.
        with contextlib.suppress(ValueError, AttributeError, DigestMismatch):
            parsed = json.loads(self._read(descriptor))
            for part in parsed.get("manifests") or ():
                inner = Descriptor.from_json(part)
                if self.has(inner.digest):
                    yield from self._reaches(inner)
            for part in (parsed.get("config"), *(parsed.get("layers") or ())):
                if part:
                    yield Descriptor.from_json(part).digest

    def _missing(self, digest: str) -> ImageError:
        return ImageError(
            f"the blob {digest} is not in {self.directory}",
            hint="Build the image again.",
            digest=digest,
            path=self.directory,
        )


def _ref_name(entry: Any) -> str | None:
    name = (entry.get("annotations") or {}).get(REF_NAME)
    return str(name) if name is not None else None
