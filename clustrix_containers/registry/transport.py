"""HTTP to one registry: connections, redirects and retries."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Reference
from clustrix_containers.remote.retry import Retry
from clustrix_containers.worker.contract import package_version

from .auth import Auth, Lookup, Trust, find_trust, is_loopback
from .blobs import Readable
from .responses import TRANSIENT, Response, network_errors, response_error

if TYPE_CHECKING:
    import urllib3
    from urllib3 import BaseHTTPResponse

Body = Callable[[], Readable]
"""Opens a request's body again for each attempt to send it."""

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


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | bytes | None = None
    length: int = 0
    stream: bool = False

    def full_headers(self) -> dict[str, str]:
        headers = {
            "User-Agent": f"clustrix-containers/{package_version()}",
            "Accept-Encoding": "identity",
            **self.headers,
        }
        if callable(self.body):
            headers["Content-Length"] = str(self.length)
        elif self.body is None and self.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        return headers


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
        self._guessed = insecure is None and is_loopback(hostname) and self._trust.empty
        if insecure is None:
            insecure = self._guessed or self.host in _insecure_registries()
        self._allow_http = insecure
        self.origin = f"{'http' if insecure else 'https'}://{address}"
        self.retry = retry or Retry()
        self._pool = pool
        self._lock = threading.Lock()
        self._lookup = lookup
        self._auth = Auth(self.origin, self.host, self.repository, lookup, self._token_request)

    def beside(self, repository: str) -> Transport:
        """The same registry and connections for another repository."""
        self._connections()
        other = Transport(
            Reference(self.host, repository),
            lookup=self._lookup,
            insecure=self._allow_http,
            pool=self._pool,
            retry=self.retry,
        )
        other._trust, other._guessed = self._trust, self._guessed
        return other

    def scopes(self, actions: str) -> tuple[str, ...]:
        """The token scope for ``actions`` (``pull,push``) on this repository."""
        return (f"repository:{self.repository}:{actions}",)

    def scoped_token(self) -> ScopedToken:
        """What another machine needs to push to this repository, and nothing else of this user's.

        RegistryError if the registry denies it, or accepts only the user's own credentials.
        """
        if self._trust.client is not None:
            raise RegistryError(f"{self.host} requires this user's own client certificate")
        scopes = self.scopes("pull,push")
        # An upload that is opened and cancelled: no other request shows for every registry
        # whether this user may push.
        response = self.send(
            "POST",
            f"/v2/{self.repository}/blobs/uploads/",
            action=f"pushing results to {self.repository}",
            scopes=scopes,
            ok=(202,),
        )
        if where := response.headers.get("Location"):
            with contextlib.suppress(RegistryError):
                url = self.resolve(where, response.url)
                self.send("DELETE", url, action="", scopes=scopes, ok=(204, 202, 404), retry=False)
        token, seconds = self._auth.scoped_token(scopes[0]) or ("", float("inf"))
        text = "".join(path.read_text("utf-8") for path in self._trust.authorities)
        return ScopedToken(self.origin, text, token, seconds)

    def send(
        self,
        method: str,
        url: str,
        *,
        action: str,
        scopes: tuple[str, ...],
        ok: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
        length: int = 0,
        stream: bool = False,
        retry: bool = True,
    ) -> Response:
        """One request; a response whose status is not in ``ok`` is a RegistryError.

        ``url`` may be relative to the registry. ``action`` completes "answered … for".
        With ``stream`` the body of a good response is left to be read. A temporary failure is
        retried unless ``retry`` is False.
        """
        request = _Request(method, url, headers or {}, body, length, stream)

        def once() -> Response:
            response = self._authorized(request, action, scopes)
            if response.status in ok:
                return response
            if response.stream is not None:
                response.stream.close()
            raise response_error(response, self.host, action, self._auth.source)

        return self.retry.run(once) if retry else once()

    def _authorized(self, request: _Request, action: str, scopes: tuple[str, ...]) -> Response:
        renewed = False
        while True:
            sent = self._auth.header(scopes)
            response = self._follow(request, action, sent)
            if self._requires_tls(response):
                continue
            # One more attempt after the first challenge, and one for a token that has expired.
            if response.status != 401 or renewed or not self._is_own(response.url):
                return response
            if not self._auth.challenged(response.challenges, scopes, sent):
                return response
            renewed = sent is not None

    def _follow(self, request: _Request, action: str, authorization: str | None) -> Response:
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
            if response.stream is not None:
                response.stream.close()
            target = self.resolve(where, target)
        raise RegistryError(
            f"redirect loop at {self.host} for {action}: more than {_MAX_REDIRECTS} redirects",
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
            url, parts, host, port = "", urlsplit(""), None, None
        if not host or parts.scheme not in ("http", "https"):
            raise RegistryError(
                f"{self.host} sent a location that is not an http(s) URL: {location[:200]!r}",
                host=self.host,
            )
        same = host == own.hostname and port in (None, own.port)
        if parts.scheme == "http" and own.scheme == "https" and same:
            # A registry behind a TLS proxy that it does not know of.
            query = f"?{parts.query}" if parts.query else ""
            return f"{self.origin}{parts.path}{query}"
        if parts.scheme == "http" and (own.scheme == "https" or not self._may_be_plain(host)):
            raise RegistryError(
                f"{self.host} redirects to {host} over plain http, which is not followed",
                hint="Its administrator must provide https for that address.",
                host=self.host,
            )
        return url

    def _may_be_plain(self, host: str) -> bool:
        own = urlsplit(self.origin).hostname
        return is_loopback(host) or (self._allow_http and not is_loopback(own))

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

    def _token_request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        def once() -> Response:
            response = self._once(_Request(method, url, headers, body or None))
            if response.status in TRANSIENT:
                host = urlsplit(url).netloc
                action = f"a token for {self.host}"
                raise response_error(response, host, action, None, login=self.host)
            return response

        return self.retry.run(once)

    def _once(self, request: _Request) -> Response:
        with network_errors(request.url):
            body = request.body() if callable(request.body) else request.body
            try:
                response = self._manager(request.url).request(
                    request.method,
                    request.url,
                    body=body,  # type: ignore[arg-type]
                    headers=request.full_headers(),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            finally:
                if body is not None and not isinstance(body, bytes):
                    body.close()
            return _read(response, request.url, request.stream)

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url)
        if proxy is None:
            return self._connections()
        import urllib3

        with self._lock:
            found = _proxies.get((proxy, self._trust))
            if found is None:
                found = urllib3.ProxyManager(proxy, **self._pool_options())
                _proxies[proxy, self._trust] = found
            return found

    def _connections(self) -> urllib3.PoolManager:
        import urllib3

        with self._lock:
            if self._pool is None:
                self._pool = urllib3.PoolManager(num_pools=8, **self._pool_options())
            return self._pool

    def _pool_options(self) -> dict[str, Any]:
        import urllib3

        return {
            "maxsize": 16,
            "blocksize": 256 << 10,
            "timeout": urllib3.Timeout(connect=15.0, read=300.0),
            "ssl_context": self._trust.context() if self.origin.startswith("https") else None,
        }


def _insecure_registries() -> list[str]:
    return [name.strip() for name in os.environ.get(INSECURE, "").split(",")]


def _read(response: BaseHTTPResponse, url: str, stream: bool) -> Response:
    challenges = tuple(response.headers.getlist("WWW-Authenticate"))
    if stream and response.status in (200, 206):
        return Response(response.status, response.headers, b"", response, url, challenges)
    body = response.read(_MAX_BODY + 1)
    if len(body) > _MAX_BODY:
        response.close()
        raise RegistryError(
            f"the response of {urlsplit(url).netloc} is larger than {_MAX_BODY:,} bytes",
            status=response.status,
        )
    response.release_conn()
    return Response(response.status, response.headers, body, None, url, challenges)


_proxies: dict[tuple[str, Trust], urllib3.ProxyManager] = {}


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
