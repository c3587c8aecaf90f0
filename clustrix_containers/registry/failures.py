"""Networks that fail: one RegistryError each, saying which part failed and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from clustrix_containers.errors import RegistryError


@contextlib.contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Exceptions of urllib3 and of sockets on the way to ``url`` become RegistryErrors."""
    import ssl

    import urllib3.exceptions as http

    try:
        yield
    except (http.SSLError, ssl.SSLError) as error:
        raise _tls(urlsplit(url).netloc, error) from error
    except (http.HTTPError, ConnectionError, TimeoutError) as error:
        raise _network(urlsplit(url).netloc, error) from error


def _tls(host: str, error: Exception) -> RegistryError:
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text or "record layer" in text:
        return RegistryError(
            f"{host} does not speak TLS",
            hint="If it is meant to be a registry without TLS, ask for that:"
            f" CLUSTRIX_INSECURE_REGISTRIES={host}.",
            host=host,
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
        cause = error.args[0] if error.args else error
        why = getattr(cause, "verify_message", "") or getattr(error, "verify_message", "") or text
        return RegistryError(
            f"the certificate of {host} is not trusted: {why}",
            hint="Put the authority that signed it (PEM) into"
            f" ~/.config/containers/certs.d/{host}/ca.crt, or name it in SSL_CERT_FILE.",
            host=host,
        )
    return RegistryError(f"no TLS connection to {host}: {text}", temporary=True, host=host)


def _network(host: str, error: Exception) -> RegistryError:
    import socket

    import urllib3.exceptions as http

    if isinstance(error, http.NameResolutionError):
        cause = error.__cause__ or error.__context__
        again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        return RegistryError(
            f"there is no host called {host.rsplit(':', 1)[0]}"
            if not again
            else f"the name {host.rsplit(':', 1)[0]} cannot be looked up now",
            hint="Check the registry's name and this machine's DNS.",
            temporary=again,
            host=host,
        )
    if isinstance(error, http.ProxyError):
        return RegistryError(
            f"the proxy does not connect us to {host}: {error.original_error}",
            hint="Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY.",
            temporary=True,
            host=host,
        )
    if isinstance(error, http.LocationParseError):
        return RegistryError(f"{host} is no host and port", host=host)
    if isinstance(error, http.ConnectTimeoutError | http.NewConnectionError):
        return RegistryError(
            f"nothing answers at {host}",
            hint="Is the registry running, and is a firewall or a VPN in between?",
            temporary=True,
            host=host,
        )
    if isinstance(error, http.ReadTimeoutError | TimeoutError):
        return RegistryError(f"{host} stopped answering", temporary=True, host=host)
    return RegistryError(f"the connection to {host} broke off", temporary=True, host=host)
