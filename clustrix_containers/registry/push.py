"""The blobs of one image into a repository: several at a time, with the fewest requests.

A blob is mounted, sent in one PUT, or in PATCHes that resume where the connection was lost.
Protocol: https://github.com/opencontainers/distribution-spec ("Pushing blobs").
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clustrix_containers.errors import DigestMismatch, RegistryError
from clustrix_containers.oci.model import Descriptor, Image, Layer, Reference
from clustrix_containers.oci.reading import open_blob
from clustrix_containers.registry.http.responses import Request, Response, check_stored
from clustrix_containers.registry.http.transport import RangeReader, Transport
from clustrix_containers.worker import contract

from .blobs import ProgressCallback, Readable, check_size

_WORKERS = 6
_SMALL = 64 << 10
"""Bytes up to which sending a blob costs less than asking whether it exists."""

_MIN_CHUNK = 4 << 20
_SESSION_LOST = (400, 404, 405, 409, 410, 416, 501)

_Source = Callable[[int], Readable]
"""``source(offset)`` gives a blob's bytes from there on, as often as needed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Blobs above ``chunk_above`` bytes go in PATCHes of ``chunk`` bytes; ``chunk`` None: never."""

    chunk_above: int = 64 << 20
    chunk: int | None = 32 << 20

    @classmethod
    def of(cls, host: str) -> Limits:
        """Known limits of a registry: ECR loses PATCHes after the first, GHCR caps them at 4 MiB."""
        if re.fullmatch(r"(.+\.dkr\.ecr[a-z-]*\..+|public\.ecr\.aws)", host):
            return cls(chunk=None)
        if host == "ghcr.io":
            return cls(chunk=4 << 20)
        return cls()


@dataclass(frozen=True, slots=True)
class Push:
    """What a push of ``image`` has to send.

    ``neighbours(digest)``: repositories of the same registry that are known to hold a blob.
    ``origin(reference)``: the transport to read a layer by reference from.
    """

    image: Image
    uploads: Uploads
    neighbours: Callable[[str], list[str]]
    origin: Callable[[Reference], Transport]

    def layers(self) -> list[Layer]:
        """The blobs: the config, and each layer once."""
        config = Layer(self.image.config_descriptor, "", self.image.config)
        return list({layer.digest: layer for layer in (config, *self.image.layers)}.values())

    def blobs(self, known: set[str]) -> None:
        """Send all that are not ``known`` to exist there; the first error stops the others."""
        with ThreadPoolExecutor(_WORKERS, "push") as threads:
            futures = []
            try:
                # The largest first: the others are sent while it is under way.
                for layer in sorted(self.layers(), key=lambda layer: -layer.size):
                    if layer.digest in known:
                        self.uploads.report(layer.descriptor, layer.size)
                    else:
                        futures.append(threads.submit(self._blob, layer))
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.uploads.stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _blob(self, layer: Layer) -> None:
        # Opened first: a damaged file is an error before any request.
        source = self._source(layer)
        uploads, blob, session = self.uploads, layer.descriptor, None
        kind = blob.annotations.get(contract.LAYER_KIND)
        # Known to be new, or so small that asking costs as much as sending.
        if layer.blob is None or (kind not in ("code", "call") and layer.size > _SMALL):
            if (repository := self._mountable_from(layer)) is not None:
                session = uploads.mount(blob, repository)
                if session is None:
                    return
            if uploads.exists(blob):
                if session is not None:
                    uploads.cancel(session)
                return
        _Upload(uploads, blob, source, session or uploads.start()).run()

    def _mountable_from(self, layer: Layer) -> str | None:
        candidates = self.neighbours(layer.digest)
        if layer.origin is not None and layer.origin.registry == self.uploads.transport.host:
            # The most certain one.
            candidates.insert(0, layer.origin.repository)
        return next((it for it in candidates if it != self.uploads.transport.repository), None)

    def _source(self, layer: Layer) -> _Source:
        if isinstance(layer.blob, Path):
            check_size(layer.descriptor, layer.blob)
        if layer.blob is None:
            transport = self.origin(origin_of(layer))
            return lambda offset: RangeReader(transport, layer.descriptor, offset)

        def read(offset: int) -> Readable:
            stream = open_blob(layer)
            stream.seek(offset)
            return stream

        return read


def origin_of(layer: Layer) -> Reference:
    """The repository of a layer by reference; RegistryError if it has none."""
    if layer.origin is None:
        raise RegistryError(
            f"the layer {layer.digest} has neither a blob nor an origin", digest=layer.digest
        )
    return layer.origin


@dataclass(frozen=True, slots=True)
class Uploads:
    """Requests about uploads to one repository; ``stop`` ends those of other threads."""

    transport: Transport
    limits: Limits = Limits()
    progress: ProgressCallback | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def report(self, blob: Descriptor, sent: int) -> None:
        if self.progress is not None:
            self.progress(blob, sent)

    def send(
        self,
        method: str,
        url: str,
        ok: tuple[int, ...],
        *,
        scopes: tuple[str, ...] = (),
        retry: bool = True,
        **options: Any,
    ) -> Response:
        action = f"pushing {self.transport.repository}"
        scopes = (*self.transport.scopes("pull,push"), *scopes)
        request = Request(method, url, action, scopes, ok, **options)
        return self.transport.send(request, retry=retry)

    @property
    def _blobs(self) -> str:
        return f"/v2/{self.transport.repository}/blobs"

    def put_manifest(self, image: Image, tag: str) -> None:
        """Tag the image, whose blobs are all there."""
        url = f"/v2/{self.transport.repository}/manifests/{tag}"
        headers = {"Content-Type": image.media_type}
        response = self.send("PUT", url, (200, 201), headers=headers, body=image.manifest)
        check_stored(response, image.digest, self.transport.host)

    def exists(self, blob: Descriptor) -> bool:
        """Whether the repository holds the blob, which is then reported as sent."""
        if self.send("HEAD", f"{self._blobs}/{blob.digest}", (200, 404)).status == 404:
            return False
        self.report(blob, blob.size)
        return True

    def mount(self, descriptor: Descriptor, repository: str) -> Response | None:
        """Mount the blob from ``repository``: None if that worked, else an upload session.

        A registry that does not reveal what another repository holds (401, 403, 404 …) is asked
        for a plain session.
        """
        source = quote(repository, safe="/")
        url = f"{self._blobs}/uploads/?mount={descriptor.digest}&from={source}"
        scopes = (f"repository:{repository}:pull",)
        try:
            response = self.send("POST", url, (201, 202), scopes=scopes)
        except RegistryError as error:
            if error.status not in (400, 401, 403, 404, 405):
                raise
            return self.start()
        if response.status == 202:
            return response
        self.report(descriptor, descriptor.size)
        return None

    def start(self) -> Response:
        """A new upload session."""
        return self.send("POST", f"{self._blobs}/uploads/", (202,))

    def cancel(self, session: Response) -> None:
        """Close a session that is not needed; whether that works does not matter."""
        with contextlib.suppress(RegistryError):
            location = self.transport.resolve(session.headers.get("Location", ""))
            self.send("DELETE", location, (204,), retry=False)


@dataclass
class _Upload:
    """The state of one upload: its session's location, and the bytes that the registry has."""

    uploads: Uploads
    blob: Descriptor
    source: _Source
    session: InitVar[Response]

    def __post_init__(self, session: Response) -> None:
        self.host, limits = self.uploads.transport.host, self.uploads.limits
        self.chunk = limits.chunk
        self.chunked = self.chunk is not None and self.blob.size > limits.chunk_above
        self.restarts = 0
        self._adopt(session)

    def run(self) -> None:
        failures = furthest = 0
        while True:
            try:
                whole = not (self.chunked or self.offset)
                while not whole and self.offset < self.blob.size:
                    self._patch()
                self._commit(self.blob.size if whole else 0)
                return
            except DigestMismatch:
                raise
            except RegistryError as error:
                if self.uploads.stop.is_set():
                    raise
                if error.temporary:
                    failures = failures + 1 if self.offset <= furthest else 1
                    furthest = max(furthest, self.offset)
                    delay = self.uploads.transport.retry.delay(failures, error)
                    if delay is None:
                        raise
                    self.uploads.stop.wait(delay)
                    if self.chunk is not None and self._resume():
                        continue
                else:
                    self._fall_back(error)
            # Perhaps only the response to the commit was lost.
            if self.uploads.exists(self.blob):
                return
            self._adopt(self.uploads.start())
            self.uploads.report(self.blob, 0)

    def _adopt(self, session: Response) -> None:
        self.offset = 0
        if not session.headers.get("Location"):
            message = f"the upload response of {self.host} has no Location header"
            raise RegistryError(message, host=self.host)
        self._move(session)
        minimum = session.headers.get("OCI-Chunk-Min-Length", "")
        if minimum.isdigit() and self.chunk is not None:
            self.chunk = max(self.chunk, int(minimum))

    def _move(self, response: Response) -> None:
        """The session's location may change with each response."""
        if location := response.headers.get("Location"):
            self.location = self.uploads.transport.resolve(location)

    def _patch(self) -> None:
        length = min(self.chunk or self.blob.size, self.blob.size - self.offset)
        end = self.offset + length
        content_range = {"Content-Range": f"{self.offset}-{end - 1}"}
        response = self._send("PATCH", self.location, length, (201, 202, 204), **content_range)
        self._move(response)
        received = _received(response, end)
        if not self.offset < received <= end:
            message = f"{self.host} lost a part of the blob {self.blob.digest}"
            raise RegistryError(message, status=416, host=self.host)
        self.offset = received

    def _commit(self, length: int) -> None:
        separator = "&" if "?" in self.location else "?"
        url = f"{self.location}{separator}digest={quote(self.blob.digest, safe='')}"
        response = self._send("PUT", url, length, (200, 201, 204))
        check_stored(response, self.blob.digest, self.host)
        self.uploads.report(self.blob, self.blob.size)

    def _send(
        self, method: str, url: str, length: int, ok: tuple[int, ...], **headers: str
    ) -> Response:
        def body() -> Readable:
            return _Part(self.source(self.offset), self.blob, self.offset, length, self.uploads)

        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        content = body if length else None
        return self.uploads.send(method, url, ok, headers=headers, body=content, retry=False)

    def _fall_back(self, error: RegistryError) -> None:
        """Choose what the registry may take from the start; raises ``error`` if nothing is left."""
        self.restarts += 1
        small = self.chunk is None or (self.chunked and self.chunk <= _MIN_CHUNK)
        if self.restarts > 2:
            raise error
        if error.status == 413 and not small:
            self.chunked, self.chunk = True, min(self.chunk or _MIN_CHUNK, _MIN_CHUNK)
        elif error.status in _SESSION_LOST and (self.chunked or self.offset):
            # Chunks do not work here, or were lost: one PUT from the start.
            self.chunked, self.chunk = False, None
        elif "DIGEST_INVALID" in error.codes:
            why = f"is rejected by {self.host}: its bytes have another digest"
            raise _changed(self.blob, why, status=error.status, codes=error.codes) from error
        elif error.status not in (404, 410):
            raise error

    def _resume(self) -> bool:
        """Query what the session has; False if it cannot be resumed."""
        try:
            response = self.uploads.send("GET", self.location, (200, 202, 204))
        except RegistryError as error:
            if error.status is None:
                raise
            return False
        received = _received(response, -1)
        if not 0 <= received <= self.blob.size:
            return False
        self._move(response)
        self.offset = received
        return True


def _received(response: Response, default: int) -> int:
    """How many bytes a session has by its ``Range: 0-N``; ``default`` without that header."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", "").strip())
    if match is None:
        return default
    last = int(match.group(1))
    # An empty session has 0-0 too; counting one byte as none only sends it again.
    return last + 1 if last else 0


def _changed(blob: Descriptor, why: str, **fields: Any) -> DigestMismatch:
    hint = "The file has changed since it was made: build the image again."
    return DigestMismatch(f"the blob {blob.digest} {why}", hint=hint, digest=blob.digest, **fields)


@dataclass(slots=True)
class _Part:
    """A part of a blob as a request's body: reports progress, and ends when the push stops."""

    source: Readable
    blob: Descriptor
    at: int
    left: int
    uploads: Uploads

    def read(self, size: int = -1, /) -> bytes:
        if self.uploads.stop.is_set():
            raise RegistryError("the upload was cancelled, since another one failed")
        if self.left == 0:
            return b""
        data = self.source.read(self.left if size < 0 else min(size, self.left))
        if not data:
            raise _changed(self.blob, f"ends {self.left:,} bytes early")
        self.left -= len(data)
        self.at += len(data)
        self.uploads.report(self.blob, self.at)
        return data

    def close(self) -> None:
        self.source.close()
