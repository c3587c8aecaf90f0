"""One blob into a registry: mounted, in one PUT, or in PATCHes that go on where they broke off.

Protocol: https://github.com/opencontainers/distribution-spec ("Pushing blobs").
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from clustrix_containers.errors import DigestMismatch, RegistryError
from clustrix_containers.oci.model import Descriptor

from .responses import Answer
from .stream import Readable
from .transport import Transport

Progress = Callable[[Descriptor, int], None]
"""``(blob, bytes of it that are there now)``; called from several threads."""

_SMALLEST_CHUNK = 4 << 20
_STALE_SESSION = (400, 404, 405, 409, 410, 416, 501)


@dataclass(frozen=True, slots=True)
class Source:
    """A blob to upload; ``open(offset)`` gives its bytes from there on, as often as needed."""

    descriptor: Descriptor
    open: Callable[[int], Readable]


def from_bytes(descriptor: Descriptor, data: bytes) -> Source:
    def start(offset: int) -> BinaryIO:
        stream = io.BytesIO(data)
        stream.seek(offset)
        return stream

    return Source(descriptor, start)


def from_file(descriptor: Descriptor, path: Path) -> Source:
    """DigestMismatch, before anything is sent, for a file of the wrong size."""
    size = path.stat().st_size
    if size != descriptor.size:
        raise DigestMismatch(
            f"{path} has {size:,} bytes, its blob {descriptor.digest} has {descriptor.size:,}",
            hint="Delete the file and build the image again.",
            path=path,
            digest=descriptor.digest,
        )

    def start(offset: int) -> BinaryIO:
        stream = path.open("rb")
        stream.seek(offset)
        return stream

    return Source(descriptor, start)


@dataclass(frozen=True, slots=True)
class Limits:
    """Blobs above ``chunk_above`` bytes go in PATCHes of ``chunk`` bytes; ``chunk`` None: never."""

    chunk_above: int = 64 << 20
    chunk: int | None = 32 << 20

    @classmethod
    def of(cls, host: str) -> Limits:
        """What is known of a registry: ECR loses PATCHes after the first, GHCR caps them at 4 MiB."""
        if re.fullmatch(r"(.+\.dkr\.ecr[a-z-]*\..+|public\.ecr\.aws)", host):
            return cls(chunk=None)
        if host == "ghcr.io":
            return cls(chunk=4 << 20)
        return cls()


class Uploads:
    """Puts blobs into the transport's repository. ``stop`` ends the uploads of other threads."""

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self.transport = transport
        self.limits = limits
        self.progress = progress
        self.stop = stop
        self.base = f"/v2/{transport.repository}/blobs"
        self.action = f"pushing {transport.repository}"
        self.scopes = (f"repository:{transport.repository}:pull,push",)

    def has(self, digest: str) -> bool:
        url = f"{self.base}/{digest}"
        answer = self.transport.send(
            "HEAD", url, action=self.action, scopes=self.scopes, ok=(200, 404)
        )
        return answer.status == 200

    def mount(self, descriptor: Descriptor, repository: str) -> Answer | None:
        """Try to take the blob over from ``repository``; None if it is there now, else a session.

        A registry that will not say what another repository holds (401, 403, 404 …) is asked
        for a plain session.
        """
        url = f"{self.base}/uploads/?mount={descriptor.digest}&from={quote(repository, safe='/')}"
        scopes = (*self.scopes, f"repository:{repository}:pull")
        try:
            answer = self.transport.send(
                "POST", url, action=self.action, scopes=scopes, ok=(201, 202)
            )
        except RegistryError as error:
            if error.status not in (400, 401, 403, 404, 405):
                raise
            return self.begin()
        return None if answer.status == 201 else answer

    def begin(self) -> Answer:
        """A new upload session."""
        return self.transport.send(
            "POST", f"{self.base}/uploads/", action=self.action, scopes=self.scopes, ok=(202,)
        )

    def cancel(self, session: Answer) -> None:
        """Give a session back that is not needed; whether that works does not matter."""
        try:
            location = self.transport.resolve(session.headers.get("Location", ""))
            self.transport.send(
                "DELETE", location, action=self.action, scopes=self.scopes, ok=(204,), retry=False
            )
        except RegistryError:
            pass

    def put(self, source: Source, session: Answer | None = None) -> None:
        """Upload ``source``, over ``session`` if there is one already."""
        _Upload(self, source, session or self.begin()).run()


class _Upload:
    """The state of one upload: where its session is, and how much of the blob it has."""

    def __init__(self, uploads: Uploads, source: Source, session: Answer) -> None:
        self.uploads = uploads
        self.source = source
        self.blob = source.descriptor
        self.chunk = uploads.limits.chunk
        self.chunked = self.chunk is not None and self.blob.size > uploads.limits.chunk_above
        self.restarts = 0
        self.fresh = False
        self._adopt(session)

    def run(self) -> None:
        failures = furthest = 0
        while True:
            try:
                self._send_rest()
                return
            except DigestMismatch:
                raise
            except RegistryError as error:
                if self.offset > furthest:
                    failures, furthest = 0, self.offset
                failures += 1
                self._consider(error, failures)
            if self._resume():
                return

    def _adopt(self, session: Answer) -> None:
        self.offset = 0
        self.location = self._where(session)
        smallest = session.headers.get("OCI-Chunk-Min-Length", "")
        if smallest.isdigit() and self.chunk is not None:
            self.chunk = max(self.chunk, int(smallest))

    def _where(self, answer: Answer) -> str:
        location = answer.headers.get("Location")
        if not location:
            raise RegistryError(
                f"{self.uploads.transport.host} opened an upload and does not say where",
                host=self.uploads.transport.host,
            )
        return self.uploads.transport.resolve(location)

    def _send_rest(self) -> None:
        if self.chunked or self.offset:
            self._patch_rest()
            self._commit(0)
        else:
            self._commit(self.blob.size)

    def _patch_rest(self) -> None:
        while self.offset < self.blob.size:
            length = min(self.chunk or self.blob.size, self.blob.size - self.offset)
            end = self.offset + length
            headers = {
                "Content-Range": f"{self.offset}-{end - 1}",
                "Content-Type": "application/octet-stream",
            }
            answer = self._send("PATCH", self.location, length, (201, 202, 204), headers)
            if answer.headers.get("Location"):
                self.location = self._where(answer)
            taken = _taken(answer)
            if taken is None:
                taken = end
            if not self.offset < taken <= end:
                raise RegistryError(
                    f"{self.uploads.transport.host} lost a part of the blob {self.blob.digest}",
                    status=416,
                    host=self.uploads.transport.host,
                )
            self.offset = taken

    def _commit(self, length: int) -> None:
        joint = "&" if "?" in self.location else "?"
        url = f"{self.location}{joint}digest={quote(self.blob.digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._send("PUT", url, length, (200, 201, 204), headers)
        said = answer.headers.get("Docker-Content-Digest")
        if said and said != self.blob.digest:
            raise DigestMismatch(
                f"{self.uploads.transport.host} stored {self.blob.digest} as {said}",
                digest=self.blob.digest,
                host=self.uploads.transport.host,
            )
        self._report(self.blob.size)

    def _send(
        self, method: str, url: str, length: int, ok: tuple[int, ...], headers: dict[str, str]
    ) -> Answer:
        uploads, offset = self.uploads, self.offset

        def body() -> Readable:
            return _Part(self.source.open(offset), self.blob, offset, length, uploads)

        return uploads.transport.send(
            method,
            url,
            action=uploads.action,
            scopes=uploads.scopes,
            ok=ok,
            headers=headers,
            body=body if length else None,
            length=length,
            retry=False,
        )

    def _report(self, done: int) -> None:
        if self.uploads.progress is not None:
            self.uploads.progress(self.blob, done)

    def _consider(self, error: RegistryError, failures: int) -> None:
        """Wait, and decide how to go on; raises ``error`` if there is no way."""
        if self.uploads.stop.is_set():
            raise error
        if error.temporary:
            delay = self.uploads.transport.retry.delay(failures, error)
            if delay is None:
                raise error
            self.uploads.stop.wait(delay)
            return
        self.fresh = True
        self.restarts += 1
        if self.restarts > 2:
            raise error
        if error.status == 413 and self._shrink():
            return
        if error.status in _STALE_SESSION and (self.chunked or self.offset):
            # Chunks do not work here, or got lost on the way: one PUT from the start.
            self.chunked, self.chunk = False, None
            return
        if "DIGEST_INVALID" in error.codes:
            raise DigestMismatch(
                f"{self.uploads.transport.host} refuses the blob {self.blob.digest}:"
                " its bytes have another digest",
                hint="The file has changed since it was made: build the image again.",
                digest=self.blob.digest,
                status=error.status,
                codes=error.codes,
            ) from error
        if error.status not in (404, 410):
            raise error

    def _shrink(self) -> bool:
        """Use smaller chunks; False if they are small already."""
        if self.chunk is None or (self.chunked and self.chunk <= _SMALLEST_CHUNK):
            return False
        self.chunked, self.chunk = True, min(self.chunk, _SMALLEST_CHUNK)
        return True

    def _resume(self) -> bool:
        """Find out what the registry has; True if that is the whole blob, committed."""
        if not self.fresh and self.chunk is not None and self._ask():
            return False
        self.fresh = False
        # The answer to a commit may be all that was lost.
        if self.uploads.has(self.blob.digest):
            self._report(self.blob.size)
            return True
        self._adopt(self.uploads.begin())
        self._report(0)
        return False

    def _ask(self) -> bool:
        """Ask for the session's state; False if it has none that can be used."""
        uploads = self.uploads
        try:
            answer = uploads.transport.send(
                "GET",
                self.location,
                action=uploads.action,
                scopes=uploads.scopes,
                ok=(200, 202, 204),
            )
        except RegistryError as error:
            if error.status is None:
                raise
            return False
        taken = _taken(answer)
        if taken is None or taken > self.blob.size:
            return False
        if answer.headers.get("Location"):
            self.location = self._where(answer)
        self.offset = taken
        return True


def _taken(answer: Answer) -> int | None:
    """How many bytes a session has by its ``Range: 0-N``; None if it does not say."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", "").strip())
    if match is None:
        return None
    last = int(match.group(1))
    # An empty session says 0-0 too; counting one byte as none only sends it again.
    return last + 1 if last else 0


class _Part:
    """A part of a blob as a request's body; counts what passes, ends when it must stop."""

    def __init__(
        self, source: Readable, blob: Descriptor, offset: int, length: int, uploads: Uploads
    ) -> None:
        self._source = source
        self._blob = blob
        self._at = offset
        self._left = length
        self._uploads = uploads

    def read(self, size: int = -1, /) -> bytes:
        if self._uploads.stop.is_set():
            raise RegistryError("the upload was given up, since another one failed")
        if self._left == 0:
            return b""
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._source.read(wanted)
        if not data:
            raise DigestMismatch(
                f"the blob {self._blob.digest} ends {self._left:,} bytes early",
                hint="The file has changed since it was made: build the image again.",
                digest=self._blob.digest,
            )
        self._left -= len(data)
        self._at += len(data)
        if self._uploads.progress is not None:
            self._uploads.progress(self._blob, self._at)
        return data

    def close(self) -> None:
        self._source.close()
