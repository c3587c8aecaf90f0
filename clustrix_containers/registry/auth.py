"""Authentication: credentials (Basic and Bearer, as a challenge requires), and certificates.

Formats: RFC 9110 section 11 (challenges), https://distribution.github.io/distribution/spec/auth/
(bearer tokens over GET, and over POST for refresh tokens).

Rules: no credentials are sent before a challenge. A password goes to the registry itself,
or to the token service (``realm``) that it names; for a registry over https the service must
use https too; over plain http only a service on the same machine gets the password.

Certificates are where Docker and Podman expect them
(https://docs.docker.com/engine/security/certificates/, containers-certs.d(5)): in a directory
``certs.d/HOST[:PORT]`` each ``*.crt`` is an authority (PEM), and ``NAME.cert`` with ``NAME.key``
a client certificate.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.errors import ConfigError, RegistryError

from .responses import Response, response_error

if TYPE_CHECKING:
    import ssl

Lookup = Callable[[str, str], "Credential | None"]
"""``(registry, repository)`` → the credential for it."""

Send = Callable[[str, str, Mapping[str, str], bytes], Response]
"""``(method, url, headers, body)``: one request, no redirects followed, no credentials added."""

_CLIENT = "clustrix-containers"
_PAIR = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?=[\s,]|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: ``scheme`` in lower case and its parameters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges in one ``WWW-Authenticate`` header, which may hold several."""
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(header):
        if header[at] in " ,\t":
            at += 1
            continue
        pair = _PAIR.match(header, at)
        if pair:
            if not found:
                return []
            quoted, plain = pair.group(2), pair.group(3)
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            found[-1][1][pair.group(1).lower()] = value
            at = pair.end()
            continue
        scheme = _SCHEME.match(header, at)
        if not scheme:
            break
        found.append((scheme.group(1).lower(), {}))
        at = scheme.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    expires: float
    seconds: float = float("inf")
    """How long it is valid after it was issued."""


class Auth:
    """The ``Authorization`` header for one repository's registry; used by many threads."""

    def __init__(self, origin: str, host: str, repository: str, lookup: Lookup, send: Send) -> None:
        self.origin = origin
        self._host = host
        self._repository = repository
        self._lookup = lookup
        self._send = send
        self._lock = threading.RLock()
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._extra: dict[tuple[str, ...], str] = {}
        self._credential: Credential | None = None
        self._looked_up = False
        self._refresh_token = ""

    @property
    def source(self) -> str | None:
        """Where the credentials in use came from; None if there are none."""
        credential = self._credential
        return (credential.source or "the caller") if credential else None

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What to send now; None before the first challenge, or without credentials."""
        with self._lock:
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                return _basic(self._current())
            token = self._tokens.get(scopes)
            if token is None or token.expires <= time.monotonic():
                token = self._fetch(self._challenge, scopes)
                self._tokens[scopes] = token
            return f"Bearer {token.value}"

    def challenged(
        self, headers: tuple[str, ...], scopes: tuple[str, ...], sent: str | None
    ) -> bool:
        """Process a 401's challenges; whether :meth:`header` has something new to send now."""
        offered = [it for header in headers for it in parse_challenges(header)]
        chosen = next((it for it in offered if it.scheme == "bearer"), None) or next(
            (it for it in offered if it.scheme == "basic"), None
        )
        if chosen is None:
            return False
        with self._lock:
            self._challenge = chosen
            if chosen.scheme == "basic":
                if sent is not None and sent == _basic(self._current()):
                    self._forget()
                now = _basic(self._current())
                return now is not None and now != sent
            self._extra[scopes] = chosen.parameters.get("scope", "")
            token = self._tokens.get(scopes)
            if sent is not None and token is not None and sent == f"Bearer {token.value}":
                # Rejected before it expired: the credential may have changed too.
                del self._tokens[scopes]
                self._forget()
            return True

    def scoped_token(self, scope: str) -> tuple[str, float] | None:
        """A new token for ``scope`` alone, and for how many seconds it is valid.

        None if the registry has sent no challenge. A RegistryError if it only accepts the user's
        own credentials: a password, or a token that was not issued for this scope.
        """
        with self._lock:
            if self._challenge is None:
                return None
            credential = self._current()
            if self._challenge.scheme == "basic" or (credential and credential.registry_token):
                raise RegistryError(f"{self._host} issues no tokens for a single repository")
            begun = time.monotonic()
            token = self._request(self._challenge, [scope])
            if credential is not None and _reveals(token.value, credential):
                raise RegistryError(f"the token of {self._host} contains the user's own secret")
            return token.value, token.seconds - (time.monotonic() - begun)

    def _current(self) -> Credential | None:
        if not self._looked_up:
            self._credential = self._lookup(self._host, self._repository)
            self._looked_up = True
        return self._credential

    def _forget(self) -> None:
        self._looked_up = False
        self._refresh_token = ""

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Token:
        credential = self._current()
        if credential is not None and credential.registry_token:
            return _Token(credential.registry_token, float("inf"))
        wanted = list(scopes)
        extra = self._extra.get(scopes, "")
        wanted += [scope for scope in extra.split() if not _covered(scope, wanted)]
        return self._request(challenge, wanted)

    def _request(self, challenge: Challenge, wanted: list[str]) -> _Token:
        credential = self._current()
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm, credential)
        service = challenge.parameters.get("service", "")
        refresh = self._refresh_token or (credential.identity_token if credential else "")
        if refresh:
            response = self._by_refresh_token(realm, service, wanted, refresh)
        else:
            response = self._by_password(realm, service, wanted, credential)
        if response.status != 200:
            action = f"a token to use {self._repository} on {self._host}"
            host = urlsplit(realm).netloc
            raise response_error(response, host, action, self.source, login=self._host)
        return self._token(response, realm)

    def _by_password(
        self, realm: str, service: str, scopes: list[str], credential: Credential | None
    ) -> Response:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        basic = _basic(credential)
        if basic is not None and credential is not None:
            query.append(("account", credential.username))
            headers["Authorization"] = basic
        separator = "&" if urlsplit(realm).query else "?"
        return self._send("GET", f"{realm}{separator}{urlencode(query)}", headers, b"")

    def _by_refresh_token(
        self, realm: str, service: str, scopes: list[str], refresh: str
    ) -> Response:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            "refresh_token": refresh,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._send("POST", realm, headers, urlencode(form).encode())

    def _token(self, response: Response, realm: str) -> _Token:
        try:
            reply = json.loads(response.body)
            value = reply.get("token") or reply["access_token"]
            # 60 s is the specification's default.
            seconds = float(reply.get("expires_in") or 60)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"the response of {urlsplit(realm).netloc} has no token for {self._host}",
                status=response.status,
                host=self._host,
            ) from error
        if isinstance(reply.get("refresh_token"), str) and self._credential is not None:
            self._refresh_token = reply["refresh_token"]
        expires = time.monotonic() + seconds - min(10.0, seconds / 4)
        return _Token(str(value), expires, seconds)

    def _check_realm(self, realm: str, credential: Credential | None) -> None:
        try:
            service, registry = urlsplit(realm), urlsplit(self.origin)
            host = service.hostname
        except ValueError:
            host = None
        if not host or service.scheme not in ("http", "https"):
            raise RegistryError(
                f"the challenge of {self._host} has no valid realm (token service): {realm!r}",
                host=self._host,
            )
        if registry.scheme == "https" and service.scheme != "https":
            raise RegistryError(
                f"{self._host} uses https, its token service does not: {realm}",
                hint="Nothing was sent there. Its administrator must give the service a certificate.",
                host=self._host,
            )
        if credential is None or registry.scheme == "https":
            return
        same = host == registry.hostname or (is_loopback(host) and is_loopback(registry.hostname))
        if not same:
            raise RegistryError(
                f"{self._host} uses plain http, and its token service is another host: {host}",
                hint="No password is sent there: use https for this registry.",
                host=self._host,
            )


def is_loopback(host: str | None) -> bool:
    """Whether a host name without port can only mean this machine."""
    import ipaddress

    if not host:
        return False
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _basic(credential: Credential | None) -> str | None:
    if credential is None or not credential.username:
        return None
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _reveals(token: str, credential: Credential) -> bool:
    """Whether a token is, or encodes, the user's own secret: some services issue such tokens."""
    secrets = [it.encode() for it in (credential.password, credential.identity_token) if it]
    forms = [token.encode()]
    with contextlib.suppress(ValueError):
        forms.append(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    with contextlib.suppress(ValueError):
        forms.append(base64.b64decode(token + "=" * (-len(token) % 4)))
    # A short one may be contained by chance.
    return any(
        secret == form or (len(secret) >= 8 and secret in form)
        for secret in secrets
        for form in forms
    )


def _covered(scope: str, scopes: list[str]) -> bool:
    """Whether ``scopes`` include ``scope`` (``repository:name:actions``)."""
    name, _, actions = scope.rpartition(":")
    others = (other.rpartition(":") for other in scopes)
    return any(
        name == other and set(actions.split(",")) <= set(granted.split(","))
        for other, _, granted in others
    )


@dataclass(frozen=True, slots=True)
class Trust:
    """Authorities (PEM files) besides the system's, and the client's certificate with its key."""

    authorities: tuple[Path, ...] = ()
    client: tuple[Path, Path] | None = None

    @property
    def empty(self) -> bool:
        return not self.authorities and self.client is None

    def context(self) -> ssl.SSLContext:
        """The system's authorities (``SSL_CERT_FILE``, ``SSL_CERT_DIR``) and these."""
        import ssl

        context = ssl.create_default_context()
        for path in self.authorities:
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:  # noqa: PERF203 - one or two files
                raise ConfigError(
                    f"cannot read the certificates in {path}: {error}",
                    hint="Expected a PEM file of the authority that signed the registry's"
                    " certificate.",
                    path=path,
                ) from error
        if self.client is not None:
            certificate, key = self.client
            try:
                context.load_cert_chain(certificate, key)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"cannot use the client certificate {certificate}: {error}",
                    hint=f"Expected a PEM file, and its key without a password in {key}.",
                    path=certificate,
                ) from error
        return context


def find_trust(host: str) -> Trust:
    """The certificates in the first ``certs.d/host`` that has any; ``host`` is ``name[:port]``."""
    for parent in _certificate_directories():
        directory = parent / host
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
        trust = Trust(authorities, next(_client_pairs(names), None))
        if not trust.empty:
            return trust
    return Trust()


def _certificate_directories() -> Iterator[Path]:
    """``certs.d`` of this user (Podman, rootless Docker, Docker) and of the machine."""
    config = os.environ.get("XDG_CONFIG_HOME")
    own = Path(config) if config else Path("~/.config").expanduser()
    docker = os.environ.get("DOCKER_CONFIG")
    yield own / "containers" / "certs.d"
    yield own / "docker" / "certs.d"
    yield (Path(docker) if docker else Path("~/.docker").expanduser()) / "certs.d"
    yield Path("/etc/containers/certs.d")
    yield Path("/etc/docker/certs.d")


def _client_pairs(names: list[Path]) -> Iterator[tuple[Path, Path]]:
    for path in names:
        if path.suffix == ".cert":
            key = path.with_suffix(".key")
            if key not in names:
                raise ConfigError(
                    f"the client certificate {path} has no key beside it",
                    hint=f"Put it there: {key.name}.",
                    path=path,
                )
            yield path, key
