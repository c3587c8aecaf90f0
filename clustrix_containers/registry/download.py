"""A blob's bytes out of a registry, resumed where the connection was lost."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Descriptor

from .blobs import BLOCK
from .responses import Request, network_errors
from .transport import Transport

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse


class RangeReader:
    """A blob's bytes from ``offset`` on, not verified."""

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
                self.close()
                # Not Retry.run: a read that gets further starts the count again.
                self._failures += 1
                delay = self._transport.retry.delay(self._failures, error)
                if delay is None:
                    raise
                time.sleep(delay)
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
        complete = self._at >= self._descriptor.size
        if not data and not complete and not response.headers.get("Content-Length"):
            # Without a length a lost connection looks like the end.
            raise self._ended_early()
        return data

    def _ended_early(self) -> RegistryError:
        return RegistryError(f"{self._transport.host} ended a blob early", temporary=True)

    def _open(self) -> None:
        repository, digest = self._transport.repository, self._descriptor.digest
        request = Request(
            "GET",
            f"/v2/{repository}/blobs/{digest}",
            f"reading the blob {digest} of {repository}",
            self._transport.scopes("pull"),
            (200, 206),
            {"Range": f"bytes={self._at}-"} if self._at else {},
            stream=True,
        )
        response = self._transport.send(request)
        self._response, self._url = response.stream, response.url
        start = 0
        if response.status == 206:
            match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if match is None:
                raise RegistryError("the 206 response has no Content-Range header", status=206)
            start = int(match.group(1))
        if start > self._at:
            self.close()
            raise RegistryError(f"{self._transport.host} left out a part of a blob")
        # A registry that does not support Range sends the whole blob again.
        left = self._at - start
        while left:
            data = self._read(min(left, BLOCK))
            if not data:
                raise self._ended_early()
            left -= len(data)

    def close(self) -> None:
        if self._response is not None:
            # Closed and not returned to the pool: it may have unread bytes.
            self._response.close()
            self._response = None
