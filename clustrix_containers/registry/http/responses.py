"""A registry's responses, and the RegistryErrors for failed requests: HTTP, TLS and network.

Status and error codes: https://github.com/opencontainers/distribution-spec ("Error Codes").
An error that a retry may cure has a true ``temporary``, and ``retry_after`` (seconds) if the
registry sent one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import responses as phrases
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clustrix_containers.errors import DigestMismatch, RegistryError
from clustrix_containers.registry.blobs import Readable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPHeaderDict

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
BLOB_UNKNOWN = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"})

_LOGIN = "Run: docker login {host}"
_REASONS = {
    "TLS": ("it speaks TLS, the request did not", "Take it out of CLUSTRIX_INSECURE_REGISTRIES."),
    "401 anonymous": ("no credentials for this host", _LOGIN),
    "401": ("it does not accept the credentials from {source}", _LOGIN),
    "403 anonymous": ("no permission without credentials, or it does not exist", _LOGIN),
    "403": (
        "the credentials from {source} do not permit it, or it does not exist"
        " (some registries answer 403 for a repository that does not exist)",
        "Check the name, and the permissions of this account on the repository.",
    ),
    "404 blob": ("a blob is missing", ""),
    "404": ("it does not exist", "Check the name; some registries hide private repositories."),
    "413": ("a request body was too large for it or for a proxy in between", ""),
    "429": ("too many requests{when}", "Logging in raises the limit on many registries."),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request; a response whose status is not in ``ok`` is an error.

    ``url`` may be relative to the registry. ``action`` completes "answered … for":
    ``pushing team/runs``. A ``body`` that can be called is opened again for each attempt; its
    Content-Length is in ``headers``. With ``stream`` the body of a 200 or 206, which must be
    ``ok``, is left to be read.
    """

    method: str
    url: str
    action: str
    scopes: tuple[str, ...] = ()
    ok: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Readable] | bytes | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose body has been read, or is still to be read from ``stream``."""

    url: str
    status: int
    headers: HTTPHeaderDict
    body: bytes = b""
    stream: BaseHTTPResponse | None = None


def check_stored(response: Response, digest: str, host: str) -> None:
    """DigestMismatch if the registry stored an upload under another digest."""
    stored = response.headers.get("Docker-Content-Digest")
    if stored and stored != digest:
        raise DigestMismatch(f"{host} stored {digest} as {stored}", digest=digest, host=host)


def response_error(
    response: Response, host: str, action: str, credentials: str | None, *, login: str | None = None
) -> RegistryError:
    """The error for a response with an unexpected status.

    ``credentials`` is the source of those that were sent; ``None``: none were. ``login`` is the
    registry to log in to, where that is not ``host``.
    """
    details = _details(response.body)
    codes = tuple(code for code, _ in details)
    text = "; ".join(text for _, text in details if text)
    after = _retry_after(response.headers.get("Retry-After"))
    case = str(response.status)
    if case == "400" and b"HTTPS" in response.body[:200]:
        case = "TLS"
    elif case == "404" and not BLOB_UNKNOWN.isdisjoint(codes):
        case = "404 blob"
    elif case in ("401", "403") and credentials is None:
        case += " anonymous"
    when = "" if after is None else f", try again in {after:.0f} s"
    why, hint = (
        part.format(source=credentials, host=login or host, when=when)
        for part in _REASONS.get(case, ("", ""))
    )
    reason = f"{why} ({text})" if why and text else why or text
    phrase = phrases.get(response.status, "(unknown status)")
    message = f"{host} answered {response.status} {phrase} for {action}"
    return RegistryError(
        f"{message}: {reason}" if reason else message,
        hint=hint or None,
        status=response.status,
        codes=codes,
        temporary=response.status in TRANSIENT,
        host=host,
        **({} if after is None else {"retry_after": after}),
    )


def _details(body: bytes) -> list[tuple[str, str]]:
    """(code, message) of the specification's error body; empty for any other body."""
    try:
        errors = json.loads(body)["errors"]
        return [
            (_printable(item.get("code", "")), _message(item))
            for item in errors[:5]
            if isinstance(item, dict)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _message(item: Mapping[str, Any]) -> str:
    """An error's message, and its detail where only that has the cause."""
    message = _printable(item.get("message") or "")
    detail = item.get("detail") if item.get("code") == "UNKNOWN" else None
    if isinstance(detail, Mapping):
        # docker-registry: a failed operation of its storage, with the kernel's errno.
        enclosed = detail.get("Enclosed")
        number = enclosed.get("Err") if isinstance(enclosed, Mapping) else None
        detail = os.strerror(number) if isinstance(number, int) else json.dumps(detail)
    # The end of it: Go's errors have the cause last.
    cause = _printable(str(detail)[-300:]) if detail else ""
    return ": ".join(part for part in (message, cause) if part)


def _printable(text: Any) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))[:300].strip()


def _retry_after(text: str | None) -> float | None:
    """Seconds of ``Retry-After`` (a number or a date); None without one."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    with contextlib.suppress(InvalidHeader, ValueError, OverflowError):
        return Retry().parse_retry_after(text) if text else None
    return None


@contextlib.contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Exceptions of urllib3 and of sockets on the way to ``url`` become RegistryErrors."""
    import ssl

    import urllib3.exceptions as http

    try:
        yield
    except (http.HTTPError, ssl.SSLError, ConnectionError, TimeoutError) as error:
        host = urlsplit(url).netloc
        tls = isinstance(error, http.SSLError | ssl.SSLError)
        message, hint, temporary = (_tls_error if tls else _network_error)(host, error)
        raise RegistryError(message, hint=hint, temporary=temporary, host=host) from error


def _tls_error(host: str, error: Exception) -> tuple[str, str | None, bool]:
    """The message, the hint, and whether it is temporary."""
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text or "record layer" in text:
        hint = f"To use a registry without TLS, set CLUSTRIX_INSECURE_REGISTRIES={host}."
        return f"{host} does not speak TLS", hint, False
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
        causes = (*error.args[:1], error)
        why = next(filter(None, (getattr(it, "verify_message", "") for it in causes)), text)
        hint = (
            "Put the certificate of its authority (PEM) into"
            f" ~/.config/containers/certs.d/{host}/ca.crt, or name it in SSL_CERT_FILE."
        )
        return f"the certificate of {host} is not trusted: {why}", hint, False
    return f"TLS handshake with {host} failed: {text}", None, True


def _network_error(host: str, error: Exception) -> tuple[str, str | None, bool]:
    """The message, the hint, and whether it is temporary."""
    import socket

    import urllib3.exceptions as http

    if isinstance(error, http.NameResolutionError):
        cause = error.__cause__ or error.__context__
        temporary = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        name, now = host.rsplit(":", 1)[0], " at the moment" if temporary else ""
        hint = "Check the registry's name and this machine's DNS."
        return f"cannot resolve the host name {name}{now}", hint, temporary
    if isinstance(error, http.ProxyError):
        hint = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
        return f"the proxy cannot connect to {host}: {error.original_error}", hint, True
    if isinstance(error, http.LocationParseError):
        return f"{host} is not a valid host[:port]", None, False
    if isinstance(error, http.ConnectTimeoutError | http.NewConnectionError):
        hint = "Is the registry running, and is a firewall or a VPN in between?"
        return f"cannot connect to {host}", hint, True
    if isinstance(error, http.ReadTimeoutError | TimeoutError):
        return f"timed out waiting for {host}", None, True
    return f"the connection to {host} was lost", None, True
