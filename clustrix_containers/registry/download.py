"""One blob out of a registry: streamed, verified, going on where the connection broke off."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Descriptor

from .blobs import clear_disk_errors
from .failures import network_errors
from .responses import Answer
from .stream import BLOCK, verified
from .transport import Transport

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

Progress = Callable[[Descriptor, int], None]


class RangeReader:
    """A blob's bytes from ``offset`` on, as they come; asks for the rest when they stop coming."""

    def __init__(self, transport: Transport, descriptor: Descriptor, offset: int = 0) -> None:
        self._transport = transport
        self._descriptor = descriptor
        self._at = offset
        self._failures = 0
        self._response: BaseHTTPResponse | None = None
        self._url = ""
        if offset < descriptor.size or descriptor.size == 0:
            self._open()

    def read(self, size: int, /) -> bytes:
        while True:
            try:
                if self._response is None:
                    if self._at >= self._descriptor.size:
                        return b""
                    self._open()
                data = self._read(size)
            except RegistryError as error:
                self._wait(error)
                continue
            self._at += len(data)
            if data:
                self._failures = 0
            return data

    def _read(self, size: int) -> bytes:
        response = self._response
        assert response is not None
        with network_errors(self._url):
            data: bytes = response.read(size)
        if (
            not data
            and self._at < self._descriptor.size
            and not response.headers.get("Content-Length")
        ):
            # Without a length nothing else tells a broken connection from the end.
            raise RegistryError(
                f"{self._transport.host} ended a blob early", temporary=True, early=True
            )
        return data

    def _wait(self, error: RegistryError) -> None:
        self.close()
        self._failures += 1
        delay = self._transport.retry.delay(self._failures, error)
        if delay is None:
            raise error
        import time

        time.sleep(delay)

    def _open(self) -> None:
        repository, digest = self._transport.repository, self._descriptor.digest
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        answer = self._transport.send(
            "GET",
            f"/v2/{repository}/blobs/{digest}",
            action=f"reading the blob {digest} of {repository}",
            scopes=(f"repository:{repository}:pull",),
            ok=(200, 206),
            headers=headers,
            stream=True,
        )
        assert answer.stream is not None
        self._response, self._url = answer.stream, answer.url
        self._skip(_begins(answer))

    def _skip(self, begin: int) -> None:
        """A registry that knows no Range sends all of it again."""
        if begin > self._at:
            self.close()
            raise RegistryError(f"{self._transport.host} left out a part of a blob")
        left = self._at - begin
        while left:
            data = self._read(min(left, BLOCK))
            if not data:
                raise RegistryError(f"{self._transport.host} ended a blob early", temporary=True)
            left -= len(data)

    def close(self) -> None:
        if self._response is not None:
            # Closed and not given back: unread bytes may still be in the connection.
            self._response.close()
            self._response = None


def _begins(answer: Answer) -> int:
    if answer.status == 200:
        return 0
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if match is None:
        raise RegistryError("a registry answered 206 without Content-Range", status=206)
    return int(match.group(1))


def open_blob(transport: Transport, descriptor: Descriptor) -> BinaryIO:
    """A verified stream of a blob."""
    return verified(RangeReader(transport, descriptor), descriptor, transport.host)


def fetch_blob(
    transport: Transport,
    descriptor: Descriptor,
    destination: Path,
    progress: Progress | None = None,
) -> None:
    """A blob into the file ``destination``, which is there whole and verified, or not at all."""
    with clear_disk_errors(f"the blob {descriptor.digest}", destination.parent):
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=destination.parent, prefix=".fetch-")
        try:
            done = 0
            with os.fdopen(handle, "wb") as file, open_blob(transport, descriptor) as blob:
                while block := blob.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(descriptor, done)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(destination)
        finally:
            Path(name).unlink(missing_ok=True)
