"""A repository in a registry that speaks the OCI distribution API.

Protocol: https://github.com/opencontainers/distribution-spec.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clustrix_containers.config.paths import paths
from clustrix_containers.credentials.registry import lookup
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
from clustrix_containers.registry.http.auth import Lookup
from clustrix_containers.registry.http.responses import BLOB_UNKNOWN
from clustrix_containers.registry.http.transport import RangeReader, ScopedToken, Transport
from clustrix_containers.remote.retry import Retry
from clustrix_containers.storage import atomic

from .blobs import BLOCK, ProgressCallback, disk_errors, verified
from .manifests import config_of, digest_tag, resolve
from .push import Limits, Push, Uploads, origin_of

if TYPE_CHECKING:
    import urllib3

_ACCEPT = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_MAX_KNOWN = 4096


class Remote:
    """The repository ``name`` (``registry.example.org/team/runs``, or a Reference).

    ``insecure`` and ``ca_file``: see :class:`Transport`. ``credentials``: replaces
    :func:`clustrix_containers.credentials.registry.lookup`. ``pool``: connections to share.
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
        self._transport = Transport(
            self.reference,
            lookup=credentials or lookup,
            insecure=insecure,
            ca_file=ca_file,
            pool=pool,
            retry=retry,
        )
        self._known = KnownBlobs(cache or paths().cache / "registries", self.reference)
        self._limits = limits or Limits.of(self.reference.registry)
        self._peer = peer or (lambda it: Remote(it, credentials=credentials, retry=retry))

    def __repr__(self) -> str:
        return f"Remote({self.reference.name!r})"

    @property
    def name(self) -> str:
        """``registry/repository``."""
        return self.reference.name

    def scoped_token(self) -> ScopedToken:
        """What another machine needs to push here, and nothing else of this user's.

        RegistryError if the registry denies it, or accepts only the user's own credentials.
        """
        # An upload that is opened and cancelled: no other request shows for every registry
        # whether this user may push.
        uploads = Uploads(self._transport)
        uploads.cancel(uploads.start())
        return self._transport.scoped_token()

    # Pushing

    def push(
        self,
        image: Image,
        tag: str | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> Descriptor:
        """Send what the repository lacks of ``image``; its manifest's descriptor.

        The manifest gets the tag :func:`digest_tag` of its digest, and ``tag`` if given.
        There is no HEAD for a blob that is known to exist, or is small or new (code, call): one
        changed function is 5 requests in 3 round trips. Others are looked up, or mounted from
        a layer's origin or from where an earlier push put them. A layer of another registry
        is streamed from there.
        """
        push = Push(
            image,
            Uploads(self._transport, self._limits, progress),
            self._known.neighbours,
            self._origin,
        )
        push.blobs(self._known.read())
        try:
            push.uploads.put_manifest(image, digest_tag(image.digest))
        except RegistryError as error:
            if error.status not in (400, 404) or BLOB_UNKNOWN.isdisjoint(error.codes):
                raise
            self._known.clear()
            push.blobs(set())
            push.uploads.put_manifest(image, digest_tag(image.digest))
        if tag is not None:
            push.uploads.put_manifest(image, tag)
        self._known.add(layer.digest for layer in push.layers())
        return Descriptor(image.media_type, image.digest, len(image.manifest))

    def _origin(self, reference: Reference) -> Transport:
        if reference.registry == self.reference.registry:
            return self._transport.for_repository(reference.repository)
        return self._peer(reference)._transport

    # Reading

    def image(self, reference: str, platform: Platform | None = None) -> Image:
        """The image under a tag or digest; its layers are by reference to this repository.

        ``platform`` selects from an index; ``None`` is this machine's own.
        """
        name = f"{self.name} {reference}"
        manifest, digest = resolve(
            self.manifest(reference), platform, name, lambda found: self.manifest(found.digest)
        )
        with self.open_blob(config_of(manifest, name)) as blob:
            config = blob.read()
        origin = Reference(self.reference.registry, self.reference.repository, digest=digest)
        image = Image.read(manifest, config, origin=origin)
        # A later push of an image with these layers mounts them.
        self._known.add(layer.digest for layer in image.layers)
        return image

    def manifest(self, reference: str) -> bytes:
        """The manifest under a tag or digest, verified if its digest is known or in the response."""
        wanted = reference.rpartition("@")[2]
        action = f"reading {self.name} {reference}"
        response = self._transport.get(f"manifests/{wanted}", action, headers={"Accept": _ACCEPT})
        found = sha256(response.body)
        header = response.headers.get("Docker-Content-Digest")
        expected = wanted if wanted.startswith("sha256:") else header
        if expected and expected.startswith("sha256:") and expected != found:
            raise DigestMismatch(
                f"{self.reference.registry} sent a manifest with the digest {found} for {expected}",
                hint="The registry or a proxy damages its responses; nothing of it was used.",
                digest=expected,
            )
        return response.body

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A blob as a stream that raises DigestMismatch before its end if it is damaged.

        A lost connection is resumed where it was lost.
        """
        return verified(RangeReader(self._transport, descriptor), descriptor, self._transport.host)

    def fetch_blob(self, descriptor: Descriptor, destination: Path) -> Path:
        """Download a blob into a file that is complete and verified, or absent."""
        with (
            disk_errors(f"the blob {descriptor.digest}", destination.parent),
            atomic.replacing(destination, mode=0o644, durable=True) as file,
            self.open_blob(descriptor) as blob,
        ):
            shutil.copyfileobj(blob, file, BLOCK)
        return destination


def fetch_layers(
    directory: Path, peer: Callable[[Reference], Remote] = Remote
) -> Callable[[Layer], Path]:
    """The ``fetch`` of :meth:`Layout.push`: downloads layers by reference into ``directory``.

    Their files are named by their sha256 (hex) and are downloaded once.
    """
    # One for each repository: all layers share its connections and its token.
    remote = functools.cache(lambda name: peer(Reference.parse(name)))

    def fetch(layer: Layer) -> Path:
        path = directory / layer.digest.removeprefix("sha256:")
        if path.is_file() and path.stat().st_size == layer.size:
            return path
        return remote(origin_of(layer).name).fetch_blob(layer.descriptor, path)

    return fetch


class KnownBlobs:
    """Which blobs the repositories of a registry are known to hold: a cache in ``directory``.

    One file per repository, one digest per line, the newest last. A wrong entry costs one more
    round of a push (the registry answers ``MANIFEST_BLOB_UNKNOWN``), never more.
    """

    def __init__(self, directory: Path, name: Reference) -> None:
        self._directory = directory / hashlib.sha256(name.registry.encode()).hexdigest()[:16]
        # "+" is not allowed in a repository's name.
        self._path = self._directory / name.repository.replace("/", "+")

    def read(self) -> set[str]:
        """The digests that this repository is known to hold."""
        return set(_digests(self._path))

    def neighbours(self, digest: str) -> list[str]:
        """Other repositories of this registry that are known to hold ``digest``."""
        others = {*self._directory.glob("[!.]*")} - {self._path}
        return sorted(it.name.replace("+", "/") for it in others if digest in _digests(it))

    def add(self, digests: Iterable[str]) -> None:
        """Remember digests; a cache that cannot be written is not an error."""
        before, new = _digests(self._path), set(digests)
        if new <= set(before):
            return
        lines = [line for line in before if line not in new] + sorted(new)
        with contextlib.suppress(OSError):
            atomic.write(self._path, "\n".join(lines[-_MAX_KNOWN:]).encode(), mode=0o600)

    def clear(self) -> None:
        """Forget this repository's digests."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _digests(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
