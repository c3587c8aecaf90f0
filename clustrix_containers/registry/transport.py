"""HTTP to one registry: connections, authentication, retries, redirects, clear errors."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Reference
from clustrix_containers.remote.retry import Retry
from clustrix_containers.worker.contract import package_version

from .auth import Auth, Lookup, is_loopback
from .certificates import Trust, find
from .failures import network_errors
from .responses import Answer, refusal
from .stream import Readable

if TYPE_CHECKING:
    import ssl

    import urllib3
    from urllib3 import BaseHTTPResponse

Body = Callable[[], Readable]
"""Opens a request's body anew, for each attempt to send it."""

_LARGEST_ANSWER = 8 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_HUB_API = "registry-1.docker.io"

INSECURE = "CLUSTRIX_INSECURE_REGISTRIES"
"""Registries (``host[:port]``, separated by commas) to speak plain http to.

A variable of this user's, and not a key of clustrix.yml: that file comes with a project, and a
project must not be able to have passwords sent in clear.
"""


@dataclass(frozen=True, slots=True)
class Loan:
    """``origin``: the registry's URL; ``authorities``: PEM, to trust beside the system's.

    ``token``: good for pull and push of one repository for ``seconds``; empty if none is asked for.
    """

    origin: str
    authorities: str
    token: str = field(repr=False)
    seconds: float


class Transport:
    """Requests to the registry of ``name``; used by many threads at once.

    ``insecure``: True speaks plain http; False speaks https; None speaks https, save to
    registries that :data:`INSECURE` names, and to this machine itself (localhost,
    127.0.0.0/8, ::1) unless there are certificates for it or it asks for TLS.
    ``ca_file`` (PEM) is trusted beside the system's own, and instead of ``certs.d``.
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
            self._trust = find(self.host)
        # A guess is taken back when the registry says that it wants TLS.
        self._guessed = insecure is None and is_loopback(hostname) and self._trust.empty
        if insecure is None:
            insecure = self._guessed or self.host in _insecure()
        self._allow_http = insecure
        self.origin = f"{'http' if insecure else 'https'}://{address}"
        self.retry = retry or Retry()
        self._pool = pool
        self._lock = threading.Lock()
        self._lookup = lookup
        self._auth = Auth(self.origin, self.host, self.repository, lookup, self._raw)

    def beside(self, repository: str) -> Transport:
        """The same registry and connections for another repository."""
        self._connections()
        twin = Transport(
            Reference(self.host, repository),
            lookup=self._lookup,
            insecure=self._allow_http,
            pool=self._pool,
            retry=self.retry,
        )
        twin._trust, twin._guessed = self._trust, self._guessed
        return twin

    def lend(self) -> Loan:
        """What another machine needs to push to this repository, and no more of this user's.

        RegistryError if the registry refuses, or lends nothing less than the user's own secret.
        """
        if self._trust.client is not None:
            raise RegistryError(f"{self.host} wants a certificate of this user's own")
        scope = f"repository:{self.repository}:pull,push"
        # An upload that is begun and dropped: only so do all registries say whom they let push.
        answer = self.send(
            "POST",
            f"/v2/{self.repository}/blobs/uploads/",
            action=f"pushing results to {self.repository}",
            scopes=(scope,),
            ok=(202,),
        )
        if where := answer.headers.get("Location"):
            with contextlib.suppress(RegistryError):
                url = self.resolve(where, answer.url)
                self.send(
                    "DELETE", url, action="", scopes=(scope,), ok=(204, 202, 404), retry=False
                )
        token, seconds = self._auth.lend(scope) or ("", float("inf"))
        text = "".join(path.read_text("utf-8") for path in self._trust.authorities)
        return Loan(self.origin, text, token, seconds)

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
    ) -> Answer:
        """One request; its answer has a status of ``ok``, anything else is a RegistryError.

        ``url`` may be relative to the registry. ``action`` completes "answered … for".
        With ``stream`` the body of a good answer is left to be read. A failure that may
        pass is tried again unless ``retry`` is False.
        """

        def once() -> Answer:
            answer = self._authorized(method, url, action, scopes, headers, body, length, stream)
            if answer.status in ok:
                return answer
            if answer.stream is not None:
                answer.stream.close()
            raise refusal(answer, self.host, action, self._auth.source)

        return self.retry.run(once) if retry else once()

    def _authorized(
        self,
        method: str,
        url: str,
        action: str,
        scopes: tuple[str, ...],
        headers: Mapping[str, str] | None,
        body: Body | bytes | None,
        length: int,
        stream: bool,
    ) -> Answer:
        renewed = False
        while True:
            sent = self._auth.header(scopes)
            answer = self._follow(method, url, action, sent, headers, body, length, stream)
            if self._wants_tls(answer):
                continue
            # One more try for being asked at all, and one for a token that has ended.
            if answer.status != 401 or renewed or not self._is_own(answer.url):
                return answer
            if not self._auth.challenged(answer.challenges, scopes, sent):
                return answer
            renewed = sent is not None

    def _follow(
        self,
        method: str,
        url: str,
        action: str,
        authorization: str | None,
        headers: Mapping[str, str] | None,
        body: Body | bytes | None,
        length: int,
        stream: bool,
    ) -> Answer:
        """Send, and go where a redirect points; the credentials stay with the registry itself."""
        target = self.resolve(url, self.origin)
        for _ in range(_MOST_REDIRECTS + 1):
            now = dict(headers or {})
            if authorization is not None and self._is_own(target):
                now["Authorization"] = authorization
            answer = self._once(method, target, now, body, length, stream)
            where = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not where:
                return answer
            if method not in ("GET", "HEAD") and answer.status not in (307, 308):
                return answer
            if answer.stream is not None:
                answer.stream.close()
            target = self.resolve(where, target)
        raise RegistryError(f"{self.host} redirects {action} round in circles", host=self.host)

    def resolve(self, location: str, base: str | None = None) -> str:
        """A Location header (absolute or relative) as a URL; RegistryError if it may not be used."""
        own = urlsplit(self.origin)
        try:
            url = urljoin(base or self.origin + "/", location)
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            url, parts, host, port = "", urlsplit(""), None, None
        if not host or parts.scheme not in ("http", "https"):
            raise RegistryError(
                f"{self.host} sends us to something that is no web address: {location[:200]!r}",
                host=self.host,
            )
        same = host == own.hostname and port in (None, own.port)
        if parts.scheme == "http" and own.scheme == "https" and same:
            # A registry behind a TLS proxy that does not know of it.
            query = f"?{parts.query}" if parts.query else ""
            return f"{self.origin}{parts.path}{query}"
        if parts.scheme == "http" and (own.scheme == "https" or not self._may_be_plain(host)):
            raise RegistryError(
                f"{self.host} sends us to {host} over plain http, which is not followed",
                hint="Its administrator must give that address https.",
                host=self.host,
            )
        return url

    def _may_be_plain(self, host: str) -> bool:
        own = urlsplit(self.origin).hostname
        return is_loopback(host) or (self._allow_http and not is_loopback(own))

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self.origin)

    def _wants_tls(self, answer: Answer) -> bool:
        """Whether the request was sent in clear and must be sent again with TLS."""
        if answer.status != 400 or not answer.url.startswith("http:"):
            return False
        # Go's server says so and resets the connection, which may swallow what it said: an answer
        # without any header is of no registry.
        said = b"HTTPS" in answer.body[:200] or not answer.headers
        if self._guessed and self._is_own(answer.url) and said:
            self.origin = self._auth.origin = f"https://{urlsplit(self.origin).netloc}"
            self._guessed = self._allow_http = False
        own = urlsplit(self.origin)
        return own.scheme == "https" and own.netloc == urlsplit(answer.url).netloc

    def _raw(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        def once() -> Answer:
            answer = self._once(method, url, dict(headers), body or None, 0, False)
            if answer.status in (429, 500, 502, 503, 504):
                host = urlsplit(url).netloc
                raise refusal(answer, host, f"a token for {self.host}", None, login=self.host)
            return answer

        return self.retry.run(once)

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Body | bytes | None,
        length: int,
        stream: bool,
    ) -> Answer:
        headers.setdefault("User-Agent", f"clustrix-containers/{package_version()}")
        headers.setdefault("Accept-Encoding", "identity")
        if body is not None and not isinstance(body, bytes):
            headers["Content-Length"] = str(length)
        elif body is None and method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        with network_errors(url):
            opened = body() if callable(body) else body
            try:
                response = self._manager(url).request(
                    method,
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
            return _answer(response, url, stream)

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url)
        if proxy is None:
            return self._connections()
        import urllib3

        with self._lock:
            found = _proxies.get((proxy, self._trust))
            if found is None:
                found = urllib3.ProxyManager(proxy, **self._options())
                _proxies[proxy, self._trust] = found
            return found

    def _connections(self) -> urllib3.PoolManager:
        import urllib3

        with self._lock:
            if self._pool is None:
                self._pool = urllib3.PoolManager(num_pools=8, **self._options())
            return self._pool

    def _options(self) -> dict[str, Any]:
        import urllib3

        return {
            "maxsize": 16,
            "blocksize": 256 << 10,
            "timeout": urllib3.Timeout(connect=15.0, read=300.0),
            "ssl_context": self._ssl_context(),
        }

    def _ssl_context(self) -> ssl.SSLContext | None:
        return self._trust.context() if self.origin.startswith("https") else None


def _insecure() -> list[str]:
    return [name.strip() for name in os.environ.get(INSECURE, "").split(",")]


def _answer(response: BaseHTTPResponse, url: str, stream: bool) -> Answer:
    challenges = tuple(response.headers.getlist("WWW-Authenticate"))
    if stream and response.status in (200, 206):
        return Answer(response.status, response.headers, b"", response, url, challenges)
    body = response.read(_LARGEST_ANSWER + 1)
    if len(body) > _LARGEST_ANSWER:
        response.close()
        raise RegistryError(
            f"{urlsplit(url).netloc} answered with more than {_LARGEST_ANSWER:,} bytes",
            status=response.status,
        )
    response.release_conn()
    return Answer(response.status, response.headers, body, None, url, challenges)


_proxies: dict[tuple[str, Trust], urllib3.ProxyManager] = {}


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for ``url``; this machine itself never needs one."""
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
