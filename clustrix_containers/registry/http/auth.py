"""Authentication: credentials (Basic and Bearer, as a challenge requires), and certificates.

Formats: RFC 9110 section 11 (challenges), https://distribution.github.io/distribution/spec/auth/
(bearer tokens over GET, and over POST for refresh tokens).

Rules: no credentials are sent before a challenge. A password goes to the registry itself,
or to the token service (``realm``) that it names; for a registry over https the service must
use https too; over plain http only a service on the same machine gets the password.

Certificates are where Docker and Podman expect them (docs/guide.md, "Registries"):
https://docs.docker.com/engine/security/certificates/, containers-certs.d(5).
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from clustrix_containers.credentials.registry import Credential, user_directory
from clustrix_containers.errors import ConfigError, RegistryError

from .responses import Request, Response

if TYPE_CHECKING:
    import ssl

Lookup = Callable[[str, str], "Credential | None"]
"""``(registry, repository)`` → the credential for it."""

Send = Callable[[Request], Response]
"""One request, no redirects followed, no credentials added; RegistryError unless it is answered 200."""


def parse_challenges(headers: Iterable[str]) -> dict[str, dict[str, str]]:
    """The parameters of each scheme (in lower case) that ``WWW-Authenticate`` headers offer."""
    from urllib.request import parse_http_list

    found: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for item in parse_http_list(",".join(headers)):
        name, is_pair, value = item.partition("=")
        words = name.lower().split()
        if words and (len(words) > 1 or not is_pair):
            parameters = {}
            found.setdefault(words.pop(0), parameters)
        if words:
            value = value.strip()
            parameters[words[0]] = value[1:-1] if value.startswith('"') else value
    return found


class Auth:
    """The ``Authorization`` header for one repository's registry; used by many threads."""

    def __init__(self, origin: str, host: str, repository: str, lookup: Lookup, send: Send) -> None:
        self.origin = origin
        self._host = host
        self._repository = repository
        self._lookup = lookup
        self._send = send
        self._lock = threading.RLock()
        self._scheme = ""
        self._challenge: dict[str, str] = {}
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        """By scopes: the token, and when to replace it."""
        self._extra: dict[tuple[str, ...], str] = {}
        self._credential: Credential | None = None
        self._looked_up = False
        self._refresh_token = ""

    @property
    def source(self) -> str | None:
        """Where the credentials in use came from; None if there are none."""
        return (self._credential.source or "the caller") if self._credential else None

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What to send now; None before the first challenge, or without credentials."""
        with self._lock:
            if not self._scheme:
                return None
            if self._scheme == "basic":
                return _basic(self._current())
            token, expires = self._tokens.get(scopes, ("", 0.0))
            if expires <= time.monotonic():
                token, seconds = self._fetch(scopes)
                expires = time.monotonic() + seconds - min(10.0, seconds / 4)
                self._tokens[scopes] = token, expires
            return f"Bearer {token}"

    def challenged(self, headers: Iterable[str], scopes: tuple[str, ...], sent: str | None) -> bool:
        """Process a 401's challenges; whether :meth:`header` has something new to send now."""
        offered = parse_challenges(headers)
        scheme = next((it for it in ("bearer", "basic") if it in offered), None)
        if scheme is None:
            return False
        with self._lock:
            self._scheme, self._challenge = scheme, offered[scheme]
            if scheme == "basic":
                if sent is not None and sent == _basic(self._current()):
                    self._forget()
                return _basic(self._current()) not in (None, sent)
            self._extra[scopes] = self._challenge.get("scope", "")
            if scopes in self._tokens and sent == f"Bearer {self._tokens[scopes][0]}":
                # Rejected before it expired: the credential may have changed too.
                del self._tokens[scopes]
                self._forget()
            return True

    def scoped_token(self, scope: str) -> tuple[str, float]:
        """A new token for ``scope`` alone, and for how many seconds it is valid.

        Empty if the registry has sent no challenge. A RegistryError if it only accepts the user's
        own credentials: a password, or a token that was not issued for this scope.
        """
        with self._lock:
            if not self._scheme:
                return "", float("inf")
            credential = self._current()
            if self._scheme == "basic" or (credential and credential.registry_token):
                raise RegistryError(f"{self._host} issues no tokens for a single repository")
            begun = time.monotonic()
            token, seconds = self._request([scope])
            if credential is not None and _reveals(token, credential):
                raise RegistryError(f"the token of {self._host} contains the user's own secret")
            return token, seconds - (time.monotonic() - begun)

    def _current(self) -> Credential | None:
        if not self._looked_up:
            self._credential = self._lookup(self._host, self._repository)
            self._looked_up = True
        return self._credential

    def _forget(self) -> None:
        self._looked_up = False
        self._refresh_token = ""

    def _fetch(self, scopes: tuple[str, ...]) -> tuple[str, float]:
        credential = self._current()
        if credential is not None and credential.registry_token:
            return credential.registry_token, float("inf")
        extra = self._extra.get(scopes, "").split()
        return self._request([*scopes, *(it for it in extra if not _covered(it, scopes))])

    def _request(self, scopes: list[str]) -> tuple[str, float]:
        """A new token, and for how many seconds it is valid."""
        credential = self._current()
        realm, service = self._challenge.get("realm", ""), self._challenge.get("service", "")
        self._check_realm(realm, credential)
        action = f"a token to use {self._repository} on {self._host}"
        if refresh := self._refresh_token or (credential.identity_token if credential else ""):
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": "clustrix-containers",
                "scope": " ".join(scopes),
                "refresh_token": refresh,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urlencode(form).encode()
            request = Request("POST", realm, action, headers=headers, body=body)
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            headers = {}
            if credential is not None and (basic := _basic(credential)):
                query.append(("account", credential.username))
                headers["Authorization"] = basic
            url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
            request = Request("GET", url, action, headers=headers)
        response = self._send(request)
        try:
            reply = json.loads(response.body)
            token = str(reply.get("token") or reply["access_token"])
            # 60 s is the specification's default.
            seconds = float(reply.get("expires_in") or 60)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"the response of {urlsplit(realm).netloc} has no token for {self._host}"
            raise RegistryError(message, status=200, host=self._host) from error
        if isinstance(reply.get("refresh_token"), str) and credential is not None:
            self._refresh_token = reply["refresh_token"]
        return token, seconds

    def _check_realm(self, realm: str, credential: Credential | None) -> None:
        registry, hint = urlsplit(self.origin), None
        try:
            service = urlsplit(realm)
            host = service.hostname
        except ValueError:
            host = None
        if not host or service.scheme not in ("http", "https"):
            message = f"the challenge of {self._host} has no valid realm (token service): {realm!r}"
        elif registry.scheme == "https" and service.scheme != "https":
            message = f"{self._host} uses https, its token service does not: {realm}"
            hint = "Nothing was sent there. Its administrator must give the service a certificate."
        elif (
            credential is None
            or registry.scheme == "https"
            or host == registry.hostname
            or (is_loopback(host) and is_loopback(registry.hostname))
        ):
            return
        else:
            message = f"{self._host} uses plain http, and its token service is another host: {host}"
            hint = "No password is sent there: use https for this registry."
        raise RegistryError(message, hint=hint, host=self._host)


def is_loopback(host: str | None) -> bool:
    """Whether a host name without port can only mean this machine."""
    import ipaddress

    with contextlib.suppress(ValueError):
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    return (host or "").rstrip(".").lower() == "localhost"


def _basic(credential: Credential | None) -> str | None:
    if credential is None or not credential.username:
        return None
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _reveals(token: str, credential: Credential) -> bool:
    """Whether a token is, or encodes, the user's own secret: some services issue such tokens."""
    secrets = [it.encode() for it in (credential.password, credential.identity_token) if it]
    forms = [token.encode()]
    for decode in (base64.urlsafe_b64decode, base64.b64decode):
        with contextlib.suppress(ValueError):
            forms.append(decode(token + "=" * (-len(token) % 4)))
    # A short one may be contained by chance.
    return any(
        secret == form or (len(secret) >= 8 and secret in form)
        for secret in secrets
        for form in forms
    )


def _covered(scope: str, scopes: Iterable[str]) -> bool:
    """Whether ``scopes`` include ``scope`` (``repository:name:actions``)."""
    name, _, actions = scope.rpartition(":")
    granted = (it.rpartition(":")[2].split(",") for it in scopes if it.rpartition(":")[0] == name)
    return any(set(actions.split(",")) <= set(it) for it in granted)


@dataclass(frozen=True, slots=True)
class Trust:
    """Authorities (PEM files) besides the system's, and the client's certificate with its key."""

    authorities: tuple[Path, ...] = ()
    client: tuple[Path, Path] | None = None

    def context(self) -> ssl.SSLContext:
        """The system's authorities (``SSL_CERT_FILE``, ``SSL_CERT_DIR``) and these."""
        import ssl

        context = ssl.create_default_context()
        path, hint = Path(), "Expected the authority of the registry's certificate, as PEM."
        try:
            for path in self.authorities:
                context.load_verify_locations(path)
            if self.client is not None:
                path, key = self.client
                hint = f"Expected a PEM file, and its key without a password in {key}."
                context.load_cert_chain(path, key)
        except (OSError, ssl.SSLError) as error:
            message = f"cannot use the certificate {path}: {error}"
            raise ConfigError(message, hint=hint, path=path) from error
        return context


def find_trust(host: str) -> Trust:
    """The certificates in the first ``certs.d/host`` that has any; ``host`` is ``name[:port]``."""
    own, docker = user_directory("XDG_CONFIG_HOME"), user_directory("DOCKER_CONFIG")
    # Podman's, rootless Docker's and Docker's.
    user = (own / "containers", own / "docker", docker)
    for parent in (*user, Path("/etc/containers"), Path("/etc/docker")):
        directory = parent / "certs.d" / host
        try:
            names = sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(
                f"cannot read the registry certificates in {directory}: {error.strerror}",
                path=directory,
            ) from error
        authorities = tuple(path for path in names if path.suffix == ".crt")
        client = None
        if certificate := next((path for path in names if path.suffix == ".cert"), None):
            client = certificate, certificate.with_suffix(".key")
            if client[1] not in names:
                raise ConfigError(
                    f"the client certificate {certificate} has no key beside it",
                    hint=f"Put it there: {client[1].name}.",
                    path=certificate,
                )
        if authorities or client:
            return Trust(authorities, client)
    return Trust()
