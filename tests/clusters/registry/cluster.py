"""Starts the registries and the token service on free ports of one address of this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.certificates import Authority, Pair
from tests.clusters.daemon import Daemon, StartError
from tests.clusters.registry.token_server import ISSUER, PASSWORD, SERVICE, USER

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Service:
    """One registry: ``address`` is ``HOST:PORT``; ``ca_file`` where it speaks TLS.

    ``username`` and ``password`` where it wants them to push.
    """

    address: str
    directory: Path
    ca_file: Path | None = None
    username: str = ""
    password: str = ""

    def requests(self) -> list[str]:
        """``METHOD PATH STATUS`` of each request that its access log has so far."""
        log = (self.directory / "docker-registry.log").read_text("utf-8", "replace")
        return [" ".join(found) for found in re.findall(r'\] "(\S+) (\S+) HTTP/\S+" (\d+)', log)]


@dataclass(frozen=True)
class Registries:
    """The three registries, with all they have in ``directory``.

    They listen on ``host``, an address of this machine. ``with_parent`` ends them when whoever
    started them ends.
    """

    directory: Path
    with_parent: bool = False
    host: str = "127.0.0.1"

    @property
    def open(self) -> Service:
        return Service(self._address(self._registry("open")), self.directory / "open")

    @property
    def tls(self) -> Service:
        address, own = self._address(self._registry("tls")), self.directory / "tls"
        return Service(address, own, self._authority.pair.certificate, USER, PASSWORD)

    @property
    def token(self) -> Service:
        address = self._address(self._registry("token"))
        return Service(address, self.directory / "token", None, USER, PASSWORD)

    def up(self) -> None:
        """Start what is not running, and wait until it answers."""
        for program in ("docker-registry", "htpasswd"):
            if shutil.which(program) is None:
                package = {"htpasswd": "apache2-utils"}.get(program, program)
                raise StartError(
                    f"{program} is not installed: apt-get install {package}"
                    " (or `make setup-system` as root), or leave this part out by name"
                    " (--exclude registry)"
                )
        if not self._authority.pair.certificate.exists():
            self._authority.make()
            self._authority.sign("server", addresses=[self.host])
            self._authority.sign("issuer")
        self._start(self._token_server)
        realm = f"http://{self._address(self._token_server)}/token"
        self._configure("open", {}, {})
        self._configure("tls", self._password_file(), self._tls())
        self._configure("token", self._bearer(realm), {})
        for name in ("open", "tls", "token"):
            self._start(self._registry(name))

    def env(self) -> Mapping[str, str]:
        return {
            "CLUSTRIX_TEST_REGISTRY_OPEN": self.open.address,
            "CLUSTRIX_TEST_REGISTRY_TLS": self.tls.address,
            "CLUSTRIX_TEST_REGISTRY_TOKEN": self.token.address,
            "CLUSTRIX_TEST_REGISTRY_CA": str(self._authority.pair.certificate),
            "CLUSTRIX_TEST_REGISTRY_USER": USER,
            "CLUSTRIX_TEST_REGISTRY_PASSWORD": PASSWORD,
        }

    def target(self) -> str:
        return f"registry: {self.open.address}/me"

    def logs(self) -> str:
        daemons = [self._token_server, *map(self._registry, ("open", "tls", "token"))]
        return "\n".join(f"== {it.directory.name}: {it.name}\n{it.logs(50)}" for it in daemons)

    def down(self) -> None:
        """End them all, and remove all that they had."""
        for name in ("open", "tls", "token"):
            self._registry(name).stop()
        self._token_server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _authority(self) -> Authority:
        return Authority(self.directory / "certificates")

    def _pair(self, name: str) -> Pair:
        own = self._authority.directory
        return Pair(own / f"{name}.pem", own / f"{name}.key")

    @property
    def _token_server(self) -> Daemon:
        pair = self._pair("issuer")
        module = "tests.clusters.registry.token_server"
        return self._daemon(
            "token-server",
            (sys.executable, "-u", "-m", module, str(pair.certificate), str(pair.key), self.host),
            {"PYTHONPATH": str(_ROOT)},
        )

    def _registry(self, name: str) -> Daemon:
        config = self.directory / name / "config.json"
        return self._daemon("docker-registry", ("docker-registry", "serve", str(config)), {}, name)

    def _daemon(
        self,
        program: str,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        directory: str = "token-server",
    ) -> Daemon:
        own = self.directory / directory
        log = own / f"{program}.log"
        return Daemon(
            name=program,
            command=command,
            directory=own,
            ready=lambda: _listening(log) is not None,
            environment=environment,
            with_parent=self.with_parent,
        )

    @staticmethod
    def _start(daemon: Daemon) -> None:
        if not daemon.running():
            daemon.start()

    @staticmethod
    def _address(daemon: Daemon) -> str:
        address = _listening(daemon.log)
        if address is None:
            raise StartError(f"{daemon.name} is not up: python -m tests.clusters.registry up")
        return address

    def _configure(self, name: str, auth: dict[str, object], http: dict[str, object]) -> None:
        own = self.directory / name
        own.mkdir(parents=True, exist_ok=True)
        config = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": str(own / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": f"{self.host}:0", "secret": "of-this-test-run", **http},
            **({"auth": auth} if auth else {}),
        }
        # JSON is YAML, and needs no quoting rules of its own for strange paths.
        (own / "config.json").write_text(json.dumps(config))

    def _tls(self) -> dict[str, object]:
        pair = self._pair("server")
        return {"tls": {"certificate": str(pair.certificate), "key": str(pair.key)}}

    def _password_file(self) -> dict[str, object]:
        path = self.directory / "htpasswd"
        line = subprocess.run(
            ["htpasswd", "-niBC", "4", USER],
            input=PASSWORD.encode(),
            capture_output=True,
            check=True,
        ).stdout
        path.write_bytes(line)
        return {"htpasswd": {"realm": "test", "path": str(path)}}

    def _bearer(self, realm: str) -> dict[str, object]:
        bundle = str(self._authority.pair.certificate)
        return {
            "token": {
                "realm": realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": bundle,
            }
        }


def _listening(log: Path) -> str | None:
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    found = re.search(r"listening on ([\d.]+:\d+)", text)
    return found.group(1) if found else None
