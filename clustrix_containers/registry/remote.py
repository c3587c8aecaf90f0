"""A repository in a registry that speaks the OCI distribution API.

Protocol: https://github.com/opencontainers/distribution-spec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clustrix_containers.config import file as configuration
from clustrix_containers.credentials import registry as credentials
from clustrix_containers.errors import DigestMismatch, RegistryError
from clustrix_containers.oci.model import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Image,
    Layer,
    Platform,
    Reference,
    sha256,
)
from clustrix_containers.remote.retry import Retry

from . import download
from .auth import Lookup
from .index import choose, config_of, media_type, this_platform
from .presence import Presence
from .protocol import digest_tag
from .push import Push
from .responses import Answer
from .transport import Loan, Transport
from .upload import Limits, Progress

if TYPE_CHECKING:
    import urllib3

_ACCEPT = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_BLOB_UNKNOWN = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"}


class Remote:
    """The repository ``name`` (``registry.example.org/team/runs``, or a Reference).

    ``insecure``: True for plain http; None allows it to this machine itself and to what
    ``CLUSTRIX_INSECURE_REGISTRIES`` names. ``ca_file``: PEM certificates to trust beside
    the system's, instead of those in ``certs.d``. ``credentials``: what
    :func:`clustrix_containers.credentials.registry.lookup` does. ``pool``: connections to share.
    ``cache``: a directory that remembers which blobs registries hold (default: below the
    user's cache directory). ``limits``: when to upload in chunks. ``peer``: gives the
    Remote to read a layer by reference from (default: one with the same settings).
    """

    def __init__(
        self,
        name: Reference | str,
        *,
        insecure: bool | None = None,
        ca_file: Path | str | None = None,
        credentials: Lookup | None = None,
        pool: urllib3.PoolManager | None = None,
        cache: Path | None = None,
        retry: Retry | None = None,
        limits: Limits | None = None,
        peer: Callable[[Reference], Remote] | None = None,
    ) -> None:
        self.reference = Reference.parse(name) if isinstance(name, str) else name
        self._lookup = credentials
        self._transport = Transport(
            self.reference,
            lookup=credentials or _lookup,
            insecure=insecure,
            ca_file=ca_file,
            pool=pool,
            retry=retry,
        )
        self._presence = Presence(cache or _cache(), self.reference)
        self._limits = limits or Limits.of(self.reference.registry)
        self._peer = peer or self._like_this

    def __repr__(self) -> str:
        return f"Remote({self.reference.name!r})"

    @property
    def name(self) -> str:
        """``registry/repository``."""
        return self.reference.name

    def lend(self) -> Loan:
        """What another machine needs to push here, and no more: see :meth:`Transport.lend`."""
        return self._transport.lend()

    # Pushing

    def push(
        self,
        image: Image,
        tag: str | None = None,
        *,
        mount_from: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> Descriptor:
        """Send what the repository lacks of ``image``; its manifest's descriptor.

        The manifest gets the tag :func:`digest_tag` of its digest, and ``tag`` if given.
        Nothing is asked about a blob that is known to be there, or is small or new (code,
        call): one changed function is 5 requests in 3 trips. Others are asked for, or mounted
        from ``mount_from`` (repositories of this registry), from where a layer comes, or from
        where an earlier push put it. A layer of another registry is streamed from there.
        """
        manifest = image.manifest
        push = Push(
            image,
            self._transport,
            self._limits,
            mount_from=[*mount_from],
            neighbours=self._presence.neighbours,
            origin=lambda reference: self._peer(reference)._transport,
            progress=progress,
        )
        push.blobs(self._presence.known())
        try:
            self._put_manifest(image, manifest, digest_tag(image.digest))
        except RegistryError as error:
            if error.status not in (400, 404) or not _BLOB_UNKNOWN & set(error.codes):
                raise
            self._presence.forget()
            push.blobs(set())
            self._put_manifest(image, manifest, digest_tag(image.digest))
        if tag is not None:
            self._put_manifest(image, manifest, tag)
        self._presence.add(push.digests)
        return Descriptor(image.media_type, image.digest, len(manifest))

    def _put_manifest(self, image: Image, manifest: bytes, tag: str) -> None:
        answer = self._transport.send(
            "PUT",
            self._url("manifests", tag),
            action=f"pushing {self.reference.repository}",
            scopes=self._scopes("pull,push"),
            ok=(200, 201),
            headers={"Content-Type": image.media_type},
            body=manifest,
        )
        said = answer.headers.get("Docker-Content-Digest")
        if said and said != image.digest:
            raise DigestMismatch(
                f"{self.reference.registry} stored the manifest {image.digest} as {said}",
                digest=image.digest,
            )

    # Reading

    def image(self, reference: str, platform: Platform | None = None) -> Image:
        """The image under a tag or digest; its layers are by reference to this repository.

        ``platform`` chooses from an index; ``None`` is this machine's own.
        """
        manifest = self.manifest(reference)
        name = f"{self.name} {reference}"
        digest = sha256(manifest)
        for _ in range(3):
            if media_type(manifest, name) not in (INDEX, DOCKER_INDEX):
                break
            chosen = choose(manifest, platform or this_platform(), name)
            digest = chosen.digest
            manifest = self.manifest(digest)
        else:
            raise RegistryError(f"{name} is an index of indexes of indexes")
        with self.open_blob(config_of(manifest, name)) as blob:
            config = blob.read()
        origin = Reference(self.reference.registry, self.reference.repository, digest=digest)
        image = Image.read(manifest, config, origin=origin)
        # A push of something that stands on these layers mounts them, also long after.
        self._presence.add(layer.digest for layer in image.layers)
        return image

    def manifest(self, reference: str) -> bytes:
        """The manifest under a tag or digest, verified if the registry or ``reference`` tell its digest."""
        wanted = reference.rpartition("@")[2] if "@" in reference else reference
        answer = self._ask("GET", "manifests", wanted, f"reading {self.name} {reference}")
        found = sha256(answer.body)
        said = answer.headers.get("Docker-Content-Digest")
        expected = wanted if wanted.startswith("sha256:") else said
        if expected and expected.startswith("sha256:") and expected != found:
            raise DigestMismatch(
                f"{self.reference.registry} sent a manifest with the digest {found} for {expected}",
                hint="A proxy or the registry damages what it sends; nothing of it was used.",
                digest=expected,
            )
        return answer.body

    def has(self, digest: str) -> bool:
        """Whether a manifest or a blob is there."""
        # In this order: docker-registry answers 500 for a layer that is asked for as a manifest.
        return any(
            self._ask("HEAD", kind, digest, f"looking for {digest}", (200, 404)).status == 200
            for kind in ("blobs", "manifests")
        )

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A blob as a stream; reading the last of it raises DigestMismatch if it is wrong.

        A connection that breaks off is taken up again where it broke.
        """
        return download.open_blob(self._transport, descriptor)

    def fetch_blob(
        self, descriptor: Descriptor, destination: Path, progress: Progress | None = None
    ) -> Path:
        """A blob into a file that is there whole and verified, or not at all."""
        download.fetch_blob(self._transport, descriptor, destination, progress)
        return destination

    def tags(self) -> list[str]:
        """All tags, sorted; also those that are derived from a digest."""
        url: str | None = f"/v2/{self.reference.repository}/tags/list?n=1000"
        found: set[str] = set()
        action = f"listing the tags of {self.reference.repository}"
        for _ in range(10_000):
            if url is None:
                break
            answer = self._transport.send(
                "GET", url, action=action, scopes=self._scopes("pull"), ok=(200,)
            )
            found.update(_tags(answer, self.name))
            url = self._next(answer, url)
        return sorted(found)

    def _next(self, answer: Answer, url: str) -> str | None:
        match = re.match(r'<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("Link", ""))
        return self._transport.resolve(match.group(1), answer.url or url) if match else None

    def delete(self, reference: str) -> None:
        """Delete the image under a tag or digest, with all its tags."""
        action = f"deleting {self.name} {reference}"
        if not reference.startswith("sha256:"):
            head = self._ask("HEAD", "manifests", reference, action)
            reference = head.headers.get("Docker-Content-Digest") or sha256(
                self.manifest(reference)
            )
        self._transport.send(
            "DELETE",
            self._url("manifests", reference),
            action=action,
            scopes=self._scopes("pull,delete"),
            ok=(200, 202),
        )

    # Inside

    def _ask(
        self, method: str, kind: str, what: str, action: str, ok: tuple[int, ...] = (200,)
    ) -> Answer:
        headers = {"Accept": _ACCEPT} if kind == "manifests" else None
        return self._transport.send(
            method,
            self._url(kind, what),
            action=action,
            scopes=self._scopes("pull"),
            ok=ok,
            headers=headers,
        )

    def _url(self, kind: str, what: str) -> str:
        return f"/v2/{self.reference.repository}/{kind}/{what}"

    def _scopes(self, actions: str) -> tuple[str, ...]:
        return (f"repository:{self.reference.repository}:{actions}",)

    def _like_this(self, origin: Reference) -> Remote:
        return Remote(origin, credentials=self._lookup, retry=self._transport.retry)


def fetch_layers(
    directory: Path,
    peer: Callable[[Reference], Remote] = Remote,
    progress: Progress | None = None,
) -> Callable[[Layer], Path]:
    """What :meth:`Layout.push` takes as ``fetch``: brings layers by reference into ``directory``.

    Their files are named by their sha256 (hex) and are fetched once.
    """
    # One for each repository: its connections and its token serve all layers.
    peers: dict[str, Remote] = {}

    def fetch(layer: Layer) -> Path:
        path = directory / layer.digest.removeprefix("sha256:")
        if path.is_file() and path.stat().st_size == layer.size:
            return path
        if layer.origin is None:
            raise RegistryError(
                f"the layer {layer.digest} is by reference and does not say to where",
                digest=layer.digest,
            )
        name = layer.origin.name
        if name not in peers:
            peers[name] = peer(layer.origin)
        return peers[name].fetch_blob(layer.descriptor, path, progress)

    return fetch


def _lookup(registry: str, repository: str) -> credentials.Credential | None:
    return credentials.lookup(registry, repository)


def _cache() -> Path:
    return configuration.paths().cache / "registries"


def _tags(answer: Answer, name: str) -> list[str]:
    import json

    try:
        return [str(tag) for tag in json.loads(answer.body)["tags"] or ()]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"the list of tags of {name} cannot be read", status=200) from error
