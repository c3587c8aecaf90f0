"""A user who has ``cxc``: state, images and cache of one's own, credentials as docker login leaves them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clusters.registry.cluster import Service

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''
"""A module of a user."""
import clustrix_containers as cx


@cx.function(cpus=1)
def square(x: int) -> int:
    print("working on", x)
    return x * x
'''


@dataclass(frozen=True)
class User:
    """One user's home: ``project`` is where the commands run; ``cache`` may be another's."""

    home: Path
    cache: Path

    @property
    def project(self) -> Path:
        return self.home / "pro ject 'ü'"

    @property
    def images(self) -> Path:
        return self.home / "data" / "images"

    def settle(self, text: str = MODULE) -> User:
        """Make the directories, with ``work.py`` in the project."""
        self.project.mkdir(parents=True, exist_ok=True)
        self.write(text)
        return self

    def write(self, text: str, name: str = "work.py") -> None:
        (self.project / name).write_text(text, "utf-8")

    def login(self, service: Service) -> User:
        """What ``docker login`` writes, and the authority of the registry where it has its own."""
        docker = self.home / "docker"
        docker.mkdir(exist_ok=True)
        file = docker / "config.json"
        config = json.loads(file.read_text()) if file.exists() else {"auths": {}}
        if service.username:
            pair = base64.b64encode(f"{service.username}:{service.password}".encode()).decode()
            config["auths"][service.address] = {"auth": pair}
        file.write_text(json.dumps(config))
        self.trust(service)
        return self

    def trust(self, service: Service) -> None:
        if service.ca_file is not None:
            directory = self.home / "config" / "containers" / "certs.d" / service.address
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "ca.crt").write_bytes(service.ca_file.read_bytes())

    def environment(self, **more: str) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(ROOT),
            "CLUSTRIX_CACHE_DIR": str(self.cache),
            "CLUSTRIX_DATA_DIR": str(self.home / "data"),
            "CLUSTRIX_STATE_DIR": str(self.home / "state"),
            "DOCKER_CONFIG": str(self.home / "docker"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "HOME": str(self.home),
        }
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CLUSTRIX_", "XDG_", "REGISTRY_", "SSL_CERT"))
        }
        return {**kept, **own, **more}

    def cxc(self, *words: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run ``cxc`` in the project; a traceback is never what a user should see."""
        return self.run([sys.executable, "-m", "clustrix_containers", *words], code, **more)

    def python(self, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-c", text], 0, **more)

    def run(self, command: list[str], code: int, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.project,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "Traceback (most recent call last)" not in done.stderr
        return done

    def remains(self) -> list[str]:
        """Runs, and files that were being written, in state and images."""
        found = [str(path) for path in (self.home / "state").glob("runs/*")]
        return found + [str(path) for path in self.images.glob(".tmp/*")]
