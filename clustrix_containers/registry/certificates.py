"""Whom a registry's certificate may be signed by, and who we are to it, as Docker and Podman are told.

Formats: https://docs.docker.com/engine/security/certificates/ and containers-certs.d(5): in a
directory ``certs.d/HOST[:PORT]`` each ``*.crt`` is an authority (PEM), each ``NAME.cert`` with
``NAME.key`` a certificate of the client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clustrix_containers.errors import ConfigError

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Trust:
    """Authorities (PEM files) beside the system's, and the client's certificate with its key."""

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
                    hint="It is a PEM file of the authority that signed the registry's certificate.",
                    path=path,
                ) from error
        if self.client is not None:
            try:
                context.load_cert_chain(*self.client)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"cannot use the client certificate {self.client[0]}: {error}",
                    hint=f"It is a PEM file, and {self.client[1]} its key without a password.",
                    path=self.client[0],
                ) from error
        return context


def find(host: str) -> Trust:
    """What the first directory ``certs.d/host`` that there is says; ``host`` is ``name[:port]``."""
    for parent in directories():
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
        trust = Trust(
            tuple(path for path in names if path.suffix == ".crt"),
            next(_pairs(names), None),
        )
        if not trust.empty:
            return trust
    return Trust()


def directories() -> Iterator[Path]:
    """Where ``certs.d`` may lie: this user's (Podman, Docker without root, Docker), the machine's."""
    config = os.environ.get("XDG_CONFIG_HOME")
    own = Path(config) if config else Path("~/.config").expanduser()
    docker = os.environ.get("DOCKER_CONFIG")
    yield own / "containers" / "certs.d"
    yield own / "docker" / "certs.d"
    yield (Path(docker) if docker else Path("~/.docker").expanduser()) / "certs.d"
    yield Path("/etc/containers/certs.d")
    yield Path("/etc/docker/certs.d")


def _pairs(names: list[Path]) -> Iterator[tuple[Path, Path]]:
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
