"""A registry's responses, and the RegistryErrors for failed requests: HTTP, TLS and network.

Status and error codes: https://github.com/opencontainers/distribution-spec ("Error Codes").
An error that a retry may cure has a true ``temporary``, and ``retry_after`` (seconds) if the
registry sent one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clustrix_containers.errors import RegistryError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose body has been read, or is still to be read from ``stream``."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: BaseHTTPResponse | None = None
    url: str = ""
    challenges: tuple[str, ...] = ()


def response_error(
    response: Response, host: str, action: str, credentials: str | None, *, login: str | None = None
) -> RegistryError:
    """The error for a response with an unexpected status.

    ``action`` completes "… for": ``pushing team/runs``. ``credentials`` is the source of those
    that were sent; ``None``: none were. ``login`` is the registry to log in to, where that is
    not ``host``.
    """
    details = _details(response.body)
    codes = tuple(code for code, _ in details)
    text = "; ".join(text for _, text in details if text)
    after = _retry_after(response.headers)
    why, hint = _explain(response, login or host, credentials, codes, after)
    reason = f"{why} ({text})" if why and text else why or text
    message = f"{host} answered {response.status} {_phrase(response.status)} for {action}"
    return RegistryError(
        f"{message}: {reason}" if reason else message,
        hint=hint,
        status=response.status,
        codes=codes,
        temporary=response.status in TRANSIENT,
        host=host,
        **({} if after is None else {"retry_after": after}),
    )


def _explain(
    response: Response,
    host: str,
    credentials: str | None,
    codes: tuple[str, ...],
    after: float | None,
) -> tuple[str, str | None]:
    login = f"Run: docker login {host}"
    if response.status == 400 and b"HTTPS" in response.body[:200]:
        return "it speaks TLS, the request did not", "Take it out of CLUSTRIX_INSECURE_REGISTRIES."
    if response.status == 401:
        if credentials is None:
            return "no credentials for this host", login
        return f"it does not accept the credentials from {credentials}", login
    if response.status == 403:
        if credentials is None:
            return "no permission without credentials, or it does not exist", login
        return (
            f"the credentials from {credentials} do not permit it, or it does not exist"
            " (some registries answer 403 for a repository that does not exist)",
            "Check the name, and the permissions of this account on the repository.",
        )
    if response.status == 404:
        if "MANIFEST_BLOB_UNKNOWN" in codes or "BLOB_UNKNOWN" in codes:
            return "a blob is missing", None
        return "it does not exist", "Check the name; some registries hide private repositories."
    if response.status == 413:
        return "a request body was too large for it or for a proxy in between", None
    if response.status == 429:
        when = f", try again in {after:.0f} s" if after is not None else ""
        return f"too many requests{when}", "Logging in raises the limit on many registries."
    return "", None


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


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(unknown status)"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of ``Retry-After`` (a number or a date); None without one."""
    text = headers.get("Retry-After")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    from email.utils import parsedate_to_datetime

    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


@contextlib.contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Exceptions of urllib3 and of sockets on the way to ``url`` become RegistryErrors."""
    import ssl

    import urllib3.exceptions as http

    try:
        yield
    except (http.SSLError, ssl.SSLError) as error:
        raise _tls_error(urlsplit(url).netloc, error) from error
    except (http.HTTPError, ConnectionError, TimeoutError) as error:
        raise _network_error(urlsplit(url).netloc, error) from error


def _tls_error(host: str, error: Exception) -> RegistryError:
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text or "record layer" in text:
        return RegistryError(
            f"{host} does not speak TLS",
            hint=f"To use a registry without TLS, set CLUSTRIX_INSECURE_REGISTRIES={host}.",
            host=host,
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
        cause = error.args[0] if error.args else error
        why = getattr(cause, "verify_message", "") or getattr(error, "verify_message", "") or text
        return RegistryError(
            f"the certificate of {host} is not trusted: {why}",
            hint="Put the certificate of its authority (PEM) into"
            f" ~/.config/containers/certs.d/{host}/ca.crt, or name it in SSL_CERT_FILE.",
            host=host,
        )
    return RegistryError(f"TLS handshake with {host} failed: {text}", temporary=True, host=host)


def _network_error(host: str, error: Exception) -> RegistryError:
    import socket

    import urllib3.exceptions as http

    hint, temporary = None, True
    if isinstance(error, http.NameResolutionError):
        cause = error.__cause__ or error.__context__
        temporary = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        now = " at the moment" if temporary else ""
        message = f"cannot resolve the host name {host.rsplit(':', 1)[0]}{now}"
        hint = "Check the registry's name and this machine's DNS."
    elif isinstance(error, http.ProxyError):
        message = f"the proxy cannot connect to {host}: {error.original_error}"
        hint = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
    elif isinstance(error, http.LocationParseError):
        message, temporary = f"{host} is not a valid host[:port]", False
    elif isinstance(error, http.ConnectTimeoutError | http.NewConnectionError):
        message = f"cannot connect to {host}"
        hint = "Is the registry running, and is a firewall or a VPN in between?"
    elif isinstance(error, http.ReadTimeoutError | TimeoutError):
        message = f"timed out waiting for {host}"
    else:
        message = f"the connection to {host} was lost"
    return RegistryError(message, hint=hint, temporary=temporary, host=host)
