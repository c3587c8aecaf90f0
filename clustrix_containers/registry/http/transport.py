"""HTTP to one registry: connections, redirects and retries."""

from __future__ import annotations

import copy
import os
import re
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Descriptor, Reference
from clustrix_containers.registry.blobs import BLOCK
from clustrix_containers.remote.retry import Retry
from clustrix_containers.worker.contract import package_version

from .auth import Auth, Lookup, Trust, find_trust, is_loopback
from .responses import Request, Response, network_errors, response_error

if TYPE_CHECKING:
    import urllib3

_MAX_BODY = 8 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_HUB_API = "registry-1.docker.io"

INSECURE = "CLUSTRIX_INSECURE_REGISTRIES"
"""Registries (``host[:port]``, separated by commas) to speak plain http to.

A variable of this user's, and not a key of clustrix.yml: that file comes with a project, and a
project must not be able to have passwords sent in clear.
"""


@dataclass(frozen=True, slots=True)
class ScopedToken:
    """What another machine needs to push to one repository.

    ``origin``: the registry's URL; ``authorities``: PEM, to trust besides the system's;
    ``token``: a bearer token for pull and push, valid for ``seconds``; empty if the registry
    does not ask for one.
    """

    origin: str
    authorities: str
    token: str = field(repr=False)
    seconds: float


class Transport:
    """Requests to the registry of ``name``; used by many threads at once.

    ``insecure``: True speaks plain http; False speaks https; None speaks https, except to
    registries that :data:`INSECURE` names, and to this machine itself (localhost,
    127.0.0.0/8, ::1) unless there are certificates for it or it requires TLS.
    ``ca_file`` (PEM) is trusted besides the system's own, and instead of ``certs.d``.
    """

    def __init__(
        self,
        name: Reference,
        *,
        lookup: Lookup,
        insecure: bool | None = None,
        ca_file: Path | str | None = None,
        pool: urllib3.PoolManager | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.host = name.registry
        self.repository = name.repository
        address = _HUB_API if self.host == "docker.io" else self.host
        hostname = urlsplit(f"//{address}").hostname
        self._trust = Trust((Path(ca_file),)) if ca_file is not None else Trust()
        if ca_file is None and insecure is not True:
            self._trust = find_trust(self.host)
        # A guess that is revised when the registry requires TLS.
        self._guessed = insecure is None and is_loopback(hostname) and self._trust == Trust()
        if insecure is None:
            named = os.environ.get(INSECURE, "").replace(" ", "").split(",")
            insecure = self._guessed or self.host in named
        self._allow_http = insecure
        self.origin = f"{'http' if insecure else 'https'}://{address}"
        self.retry = retry or Retry()
        self._pools: dict[str | None, urllib3.PoolManager] = {None: pool} if pool else {}
        """By the URL of the proxy."""
        self._lock = threading.Lock()
        self._lookup = lookup
        self._auth = Auth(self.origin, self.host, self.repository, lookup, self._token_request)

    def for_repository(self, repository: str) -> Transport:
        """The same registry and connections for another repository."""
        other = copy.copy(self)
        other.repository = repository
        other._auth = Auth(self.origin, self.host, repository, self._lookup, other._token_request)
        return other

    def scopes(self, actions: str) -> tuple[str, ...]:
        """The token scope for ``actions`` (``pull,push``) on this repository."""
        return (f"repository:{self.repository}:{actions}",)

    def get(self, path: str, action: str, ok: tuple[int, ...] = (200,), **options: Any) -> Response:
        """Read ``path`` of this repository."""
        url = f"/v2/{self.repository}/{path}"
        return self.send(Request("GET", url, action, self.scopes("pull"), ok, **options))

    def scoped_token(self) -> ScopedToken:
        """What another machine needs to push to this repository, after a request that needed it.

        RegistryError if the registry accepts only the user's own credentials.
        """
        if self._trust.client is not None:
            raise RegistryError(f"{self.host} requires this user's own client certificate")
        token, seconds = self._auth.scoped_token(*self.scopes("pull,push"))
        text = "".join(path.read_text("utf-8") for path in self._trust.authorities)
        return ScopedToken(self.origin, text, token, seconds)

    def send(self, request: Request, *, retry: bool = True) -> Response:
        """The response, or a RegistryError; a temporary failure is retried if ``retry``."""

        def once() -> Response:
            response = self._authorized(request)
            if response.status in request.ok:
                return response
            raise response_error(response, self.host, request.action, self._auth.source)

        return self.retry.run(once) if retry else once()

    def _authorized(self, request: Request) -> Response:
        renewed = False
        while True:
            sent = self._auth.header(request.scopes)
            response = self._follow(request, sent)
            if self._requires_tls(response):
                continue
            # One more attempt after the first challenge, and one for a token that has expired.
            if response.status != 401 or renewed or not self._is_own(response.url):
                return response
            headers = response.headers.getlist("WWW-Authenticate")
            if not self._auth.challenged(headers, request.scopes, sent):
                return response
            renewed = sent is not None

    def _follow(self, request: Request, authorization: str | None) -> Response:
        """Send, and follow redirects; the credentials go to the registry itself only."""
        target = self.resolve(request.url, self.origin)
        for _ in range(_MAX_REDIRECTS + 1):
            headers = dict(request.headers)
            if authorization is not None and self._is_own(target):
                headers["Authorization"] = authorization
            response = self._once(replace(request, url=target, headers=headers))
            where = response.headers.get("Location")
            if response.status not in _REDIRECTS or not where:
                return response
            if request.method not in ("GET", "HEAD") and response.status not in (307, 308):
                return response
            target = self.resolve(where, target)
        raise RegistryError(
            f"redirect loop at {self.host} for {request.action}:"
            f" more than {_MAX_REDIRECTS} redirects",
            host=self.host,
        )

    def resolve(self, location: str, base: str | None = None) -> str:
        """A Location header (absolute or relative) as a URL; RegistryError if it must not be used."""
        own = urlsplit(self.origin)
        try:
            url = urljoin(base or self.origin + "/", location)
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise RegistryError(
                f"{self.host} sent a location that is not an http(s) URL: {location[:200]!r}",
                host=self.host,
            )
        same = host == own.hostname and port in (None, own.port)
        if parts.scheme == "http" and own.scheme == "https" and same:
            # A registry behind a TLS proxy that it does not know of.
            return parts._replace(scheme=own.scheme, netloc=own.netloc, fragment="").geturl()
        may_be_plain = own.scheme == "http" and (
            is_loopback(host) or (self._allow_http and not is_loopback(own.hostname))
        )
        if parts.scheme == "http" and not may_be_plain:
            raise RegistryError(
                f"{self.host} redirects to {host} over plain http, which is not followed",
                hint="Its administrator must provide https for that address.",
                host=self.host,
            )
        return url

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self.origin)

    def _requires_tls(self, response: Response) -> bool:
        """Whether the request was sent in clear and must be sent again with TLS."""
        if response.status != 400 or not response.url.startswith("http:"):
            return False
        # Go's server answers so and resets the connection, which may swallow the body: a response
        # without any header is not a registry's.
        refused = b"HTTPS" in response.body[:200] or not response.headers
        if self._guessed and self._is_own(response.url) and refused:
            self.origin = self._auth.origin = f"https://{urlsplit(self.origin).netloc}"
            self._guessed = self._allow_http = False
        own = urlsplit(self.origin)
        return own.scheme == "https" and own.netloc == urlsplit(response.url).netloc

    def _token_request(self, request: Request) -> Response:
        def once() -> Response:
            response = self._once(request)
            if response.status != 200:
                host, sent = urlsplit(request.url).netloc, self._auth.source
                raise response_error(response, host, request.action, sent, login=self.host)
            return response

        return self.retry.run(once)

    def _once(self, request: Request) -> Response:
        url, body = request.url, request.body
        headers = {
            "User-Agent": f"clustrix-containers/{package_version()}",
            "Accept-Encoding": "identity",
            **request.headers,
        }
        if body is None and request.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        with network_errors(url):
            opened = body() if callable(body) else body
            try:
                response = self._manager(url).request(
                    request.method,
                    url,
                    body=opened,  # type: ignore[arg-type]
                    headers=headers,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            finally:
                if opened is not None and not isinstance(opened, bytes):
                    opened.close()
            if request.stream and response.status in (200, 206):
                return Response(url, response.status, response.headers, stream=response)
            content = response.read(_MAX_BODY + 1)
            if len(content) > _MAX_BODY:
                response.close()
                raise RegistryError(
                    f"the response of {urlsplit(url).netloc} is larger than {_MAX_BODY:,} bytes",
                    status=response.status,
                )
            response.release_conn()
            return Response(url, response.status, response.headers, content)

    def _manager(self, url: str) -> urllib3.PoolManager:
        import urllib3

        proxy = _proxy(url)
        with self._lock:
            if proxy not in self._pools:
                options: dict[str, Any] = {
                    "num_pools": 8,
                    "maxsize": 16,
                    "blocksize": 256 << 10,
                    "timeout": urllib3.Timeout(connect=15.0, read=300.0),
                    "ssl_context": self._trust.context() if self.origin[:5] == "https" else None,
                }
                make = partial(urllib3.ProxyManager, proxy) if proxy else urllib3.PoolManager
                self._pools[proxy] = make(**options)
            return self._pools[proxy]


class RangeReader:
    """A blob's bytes from ``offset`` on, not verified; resumed where the connection was lost."""

    def __init__(self, transport: Transport, descriptor: Descriptor, offset: int = 0) -> None:
        self._transport = transport
        self._descriptor = descriptor
        self._at = offset
        self._failures = 0
        self._response: Response | None = None
        if offset < descriptor.size or descriptor.size == 0:
            self._open()

    def read(self, size: int, /) -> bytes:
        while True:
            try:
                if self._response is None and self._at < self._descriptor.size:
                    self._open()
                data = self._read(size) if self._response is not None else b""
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

    def _read(self, size: int, *, needed: bool = False) -> bytes:
        assert self._response is not None
        assert self._response.stream is not None
        with network_errors(self._response.url):
            data: bytes = self._response.stream.read(size)
        # Without a length a lost connection looks like the end.
        unknown = "Content-Length" not in self._response.headers
        if not data and (needed or (unknown and self._at < self._descriptor.size)):
            raise RegistryError(f"{self._transport.host} ended a blob early", temporary=True)
        return data

    def _open(self) -> None:
        digest = self._descriptor.digest
        action = f"reading the blob {digest} of {self._transport.repository}"
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        self._response = self._transport.get(
            f"blobs/{digest}", action, (200, 206), headers=headers, stream=True
        )
        # A registry that does not support Range sends the whole blob again.
        whole = self._response.status == 200
        sent = "bytes 0-" if whole else self._response.headers.get("Content-Range", "")
        start = re.match(r"bytes (\d+)-", sent)
        if start is None or int(start[1]) > self._at:
            self.close()
            raise RegistryError(
                f"{self._transport.host} sent a part of a blob that was not asked for"
            )
        left = self._at - int(start[1])
        while left:
            left -= len(self._read(min(left, BLOCK), needed=True))

    def close(self) -> None:
        if self._response is not None and self._response.stream is not None:
            # Closed and not returned to the pool: it may have unread bytes.
            self._response.stream.close()
        self._response = None


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for ``url``; never for this machine itself."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if is_loopback(parts.hostname):
        return None
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port
