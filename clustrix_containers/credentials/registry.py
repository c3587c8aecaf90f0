"""Credentials for registries, from the files and helpers of Docker and Podman.

Formats: https://docs.docker.com/reference/cli/docker/login/ (config.json, credential
helpers), https://github.com/containers/image (containers-auth.json(5)).

Files, in this order; the first with an entry for the registry wins:

1. ``$REGISTRY_AUTH_FILE``
2. ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``
3. ``$XDG_RUNTIME_DIR/containers/auth.json``
4. ``$XDG_CONFIG_HOME/containers/auth.json``, else ``~/.config/containers/auth.json``

Within a file: ``credHelpers`` for this registry, then ``auths`` (the most specific key
first: ``host/namespace/repository``, ``host/namespace``, ``host``), then ``credsStore``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError, ConfigError
from clustrix_containers.remote import shell

DOCKER_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_HELPER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password, or a token instead; ``repr`` shows no secret.

    ``identity_token`` is an OAuth2 refresh token, ``registry_token`` a bearer token for the
    registry itself. ``source`` is the file or the helper that it came from.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = ""


def lookup(registry: str, repository: str = "") -> Credential | None:
    """This user's credential for ``registry`` (``host[:port]``; ``docker.io`` for Docker Hub), or None.

    ConfigError for a file that cannot be read or parsed, and for a credential helper that is
    missing, fails or does not answer within a minute.
    """
    configs = ((path, config) for path in _files() if (config := _read(path)) is not None)
    found = (_from_config(path, config, registry, repository) for path, config in configs)
    return next(filter(None, found), None)


def user_directory(variable: str) -> Path:
    """Where ``DOCKER_CONFIG`` or ``XDG_CONFIG_HOME`` is, for tools that share their files."""
    defaults = {"DOCKER_CONFIG": "~/.docker", "XDG_CONFIG_HOME": "~/.config"}
    value = os.environ.get(variable)
    return Path(value) if value else Path(defaults[variable]).expanduser()


def _files() -> Iterator[Path]:
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
    yield user_directory("DOCKER_CONFIG") / "config.json"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield user_directory("XDG_CONFIG_HOME") / "containers" / "auth.json"


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if text.strip() else {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        # The exception's own text may quote the file, and the file holds passwords.
        raise ConfigError(
            f"the credentials file {path} is not valid JSON (line {error.lineno})",
            hint="Fix it, or remove it and run docker login again.",
            path=path,
            line=error.lineno,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the credentials file {path}: {error}", path=path) from error
    if not isinstance(config, dict):
        raise ConfigError(f"the credentials file {path} is not a JSON object", path=path)
    return config


def _from_config(
    path: Path, config: Mapping[str, Any], registry: str, repository: str
) -> Credential | None:
    keys = _keys(registry, repository)
    helpers = _section(config, "credHelpers", path)
    for key in keys:
        if isinstance(helpers.get(key), str):
            return _run_helper(helpers[key], _server(key), path)
    auths = _section(config, "auths", path)
    # A key that is a URL is for the whole host, whatever its path.
    urls = (key for key in auths if key.partition("://")[2].split("/")[0] in _hosts(registry))
    entries = (auths.get(key) for key in (*keys, *urls))
    entry = next((entry for entry in entries if isinstance(entry, dict)), None)
    if entry is not None and (credential := _from_entry(entry, path)):
        return credential
    store = config.get("credsStore")
    if isinstance(store, str) and store:
        return _run_helper(store, _server(registry), path, required=entry is not None)
    return None


def _section(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{name} in {path} is not an object", path=path, key=name)
    return section


def _keys(registry: str, repository: str) -> list[str]:
    """Keys that may have this repository's entry, the most specific first."""
    above = [registry, *repository.split("/")] if repository else [registry]
    paths = ["/".join(["", *above[1:count]]) for count in range(len(above), 0, -1)]
    return [f"{name}{path}" for path in paths for name in _hosts(registry)]


def _hosts(registry: str) -> tuple[str, ...]:
    return _HUB_NAMES if registry in _HUB_NAMES else (registry,)


def _server(key: str) -> str:
    return _HUB_KEY if key in _HUB_NAMES else key


def _from_entry(entry: Mapping[str, Any], path: Path) -> Credential | None:
    import base64
    import binascii

    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            decoded = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ConfigError(
                f"an auth entry in {path} is not base64 of user:password",
                hint="Run docker login again.",
                path=path,
                key="auths",
            ) from error
        username, _, password = decoded.partition(":")
        password = password.rstrip("\0")
    identity, bearer = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    if not (identity or bearer or (username and password)):
        return None
    return Credential(username, password, identity, bearer, str(path))


def _run_helper(name: str, server: str, path: Path, *, required: bool = True) -> Credential | None:
    """``docker-credential-NAME get``: https://github.com/docker/docker-credential-helpers."""
    program = f"docker-credential-{name}"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ConfigError(f"invalid name of a credential helper in {path}: {name!r}", path=path)
    if shutil.which(program) is None:
        if not required:
            # A leftover credsStore must not prevent an anonymous pull.
            return None
        raise ConfigError(
            f"the credential helper {program} of {path} is not on PATH",
            hint=f"Install it, or remove it from {path} and run docker login again.",
            path=path,
        )
    try:
        done = shell.run([program, "get"], stdin=server.encode(), timeout=_HELPER_SECONDS)
    except ClusterError as error:
        raise ConfigError(f"no credentials for {server}: {error.message}", path=path) from error
    if done.code != 0:
        message = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")[:300]
        if "credentials not found" in message.lower():
            return None
        raise ConfigError(
            f"{program} failed for {server} (exit code {done.code}): {message}", path=path
        )
    return _from_output(done.stdout, program, server, path)


def _from_output(output: bytes, program: str, server: str, path: Path) -> Credential | None:
    try:
        parsed = json.loads(output)
        username, secret = str(parsed["Username"]), str(parsed["Secret"])
    except (ValueError, KeyError, TypeError):
        # Not chained: that would show the output, which contains the secret.
        raise ConfigError(
            f"the output of {program} for {server} is not a credential", path=path
        ) from None
    if not secret:
        return None
    if username == "<token>":
        return Credential(identity_token=secret, source=program)
    return Credential(username, secret, source=program)
