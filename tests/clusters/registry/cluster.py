"""Starts the registries and the token service on free ports of one address of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.certificates import Authority, Pair
from tests.clusters.daemon import Daemon, StartError
from tests.clusters.ports import bind
from tests.clusters.registry.storage import SmallDisk, on_small_disk
from tests.clusters.registry.token_server import ISSUER, LIFE, PASSWORD, SERVICE, USER

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
    started them ends. With ``disk`` each has a file system of ``disk`` MiB, in memory, and is empty
    after each start.
    """

    directory: Path
    with_parent: bool = False
    host: str = "127.0.0.1"
    disk: int = 0

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
            daemon = self._registry(name)
            if daemon.pid and not daemon.running():
                # Killed with its starter: another may have its port by now.
                self._known(name).unlink(missing_ok=True)
            self.start(name)

    def start(self, name: str) -> None:
        """Start one that :meth:`stop` ended: on its port, with what it had stored."""
        tries = 5
        while not self._started(name) and (tries := tries - 1):
            self._set_port(name)
        if not tries:
            raise StartError(f"no port for the registry {name!r}: five in a row were taken")

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End one of them, ``kill`` as a power cut would; its port refuses connections then."""
        daemon = self._registry(name)
        if kill and daemon.running():
            os.kill(daemon.pid, signal.SIGKILL)
        daemon.stop()

    def expire_tokens(self, seconds: int | None) -> None:
        """Tokens granted from now on expire after ``seconds``, though their ``expires_in`` is longer.

        None: they are valid for as long as that says.
        """
        life = self._token_server.directory / LIFE
        if seconds is None:
            life.unlink(missing_ok=True)
            return
        new = life.with_name("life.new")
        new.write_text(str(seconds))
        new.rename(life)

    def storage(self, name: str) -> SmallDisk:
        """The disk of one of them, to fill and to protect: only with ``disk``."""
        assert self.disk, "only what has a small disk can be filled"
        return SmallDisk(self._registry(name).pid, self._data(name))

    def stored(self, name: str) -> Path:
        """Where one of them has its ``blobs`` and ``repositories`` on its disk."""
        seen = f"/proc/{self._registry(name).pid}/root" if self.disk else ""
        return Path(f"{seen}{self._data(name)}/docker/registry/v2")

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
        command: tuple[str, ...] = ("docker-registry", "serve", str(self._config(name)))
        if self.disk:
            command = on_small_disk(self.disk, self._data(name), command)
        return self._daemon("docker-registry", command, {}, name)

    def _known(self, name: str) -> Path:
        """Exists once somebody may know its port."""
        return self.directory / name / "port-is-known"

    def _config(self, name: str) -> Path:
        return self.directory / name / "config.json"

    def _data(self, name: str) -> Path:
        return self.directory / name / "data"

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
            # docker-registry takes any REGISTRY_* for its configuration, also what podman means.
            without=("REGISTRY_",),
            with_parent=self.with_parent,
        )

    def _started(self, name: str) -> bool:
        """Whether it runs now; False: another has the port that nobody knows of yet."""
        known = self._known(name)
        try:
            self._start(self._registry(name))
        except StartError as error:
            if known.exists() or "address already in use" not in str(error):
                raise
            return False
        known.touch()
        return True

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
        path = self._config(name)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.disk:
            self._data(name).mkdir()
        config = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": str(self._data(name))},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"secret": "of-this-test-run", **http},
            **({"auth": auth} if auth else {}),
        }
        # JSON is YAML, and needs no quoting rules of its own for strange paths.
        path.write_text(json.dumps(config))
        self._set_port(name)

    def _set_port(self, name: str) -> None:
        """Choose a port that stays its own over restarts."""
        config = json.loads(self._config(name).read_text())
        with bind(self.host) as free:
            config["http"]["addr"] = f"{self.host}:{free.getsockname()[1]}"
        self._config(name).write_text(json.dumps(config))

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
