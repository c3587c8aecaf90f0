"""Containers through a Docker-compatible engine on this machine (the ``docker`` SDK).

Only an engine on a local socket will do: one elsewhere (tcp, ssh) cannot see the run's
directory. The image is loaded as a ``docker save`` archive; its id is its config's digest.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.reading import open_blob

from .container import HOSTNAME, Container, ContainerSpec

REPOSITORY = "clustrix-containers"
SOCKET = "/var/run/docker.sock"
TIMEOUT = 60
BLOCK = 1 << 20


def unusable() -> str | None:
    """Why Docker cannot be used here; ``None`` if it can."""
    from importlib.util import find_spec

    host = os.environ.get("DOCKER_HOST", f"unix://{SOCKET}")
    scheme, _, socket = host.partition("://")
    if scheme != "unix":
        return f"DOCKER_HOST is {host}: a remote engine cannot see the run's directory"
    if not Path(socket).exists():
        return f"no such socket: {socket}"
    if find_spec("docker") is None:
        return "the docker SDK is not installed (pip install 'clustrix-containers[docker]')"
    try:
        with connect() as client:
            client.ping()
    except Exception as error:
        return f"the engine at {host} does not respond: {error}"
    return None


@contextlib.contextmanager
def connect() -> Iterator[Any]:
    """A client of the engine that DOCKER_HOST names, else of the default one.

    ``ClusterError`` if it does not respond.
    """
    import docker
    from requests.exceptions import ConnectionError as NoConnection

    client = docker.from_env(timeout=TIMEOUT)
    try:
        yield client
    except NoConnection as error:
        raise ClusterError(f"the Docker engine does not respond: {error}") from error
    finally:
        client.close()


def is_rootless(client: Any) -> bool:
    """Whether root in its containers is the caller."""
    options = client.info().get("SecurityOptions") or []
    return any("rootless" in option for option in options)


def load(client: Any, image: Image) -> str:
    """Load the image into the engine; its id. Layers that the engine has are not sent."""
    import docker.errors

    name = image.config_descriptor.digest
    with contextlib.suppress(docker.errors.ImageNotFound):
        return str(client.images.get(name).id)
    known = _known_layers(client, image)
    while True:
        try:
            client.images.load(_archive(image, known))
            return str(client.images.get(name).id)
        except docker.errors.APIError as error:  # noqa: PERF203
            if not known:
                message = f"the engine cannot load the image {image.digest}: {error}"
                raise ClusterError(message) from error
            # It may have lost a layer in the meantime: send all.
            known = 0


def _known_layers(client: Any, image: Image) -> int:
    """How many of the image's first layers are in an image of ours that the engine has."""
    wanted = [layer.diff_id for layer in image.layers]
    others = client.images.list(name=REPOSITORY)
    present = [other.attrs.get("RootFS", {}).get("Layers") or [] for other in others]
    prefixes = (os.path.commonprefix([wanted, layers]) for layers in present)  # noqa: RUF071
    return max(map(len, prefixes), default=0)


def _archive(image: Image, known: int) -> Iterator[bytes]:
    """A ``docker save`` archive: config, layers, ``manifest.json``."""
    config = image.config_descriptor.digest.removeprefix("sha256:") + ".json"
    names = [f"{layer.digest.removeprefix('sha256:')}/layer.tar" for layer in image.layers]
    tag = f"{REPOSITORY}:{image.digest.removeprefix('sha256:')[:12]}"
    manifest = [{"Config": config, "RepoTags": [tag], "Layers": names}]
    yield from _member(config, len(image.config), [image.config])
    # A layer that occurs twice is sent once.
    for name, layer in dict(list(zip(names, image.layers, strict=True))[known:]).items():
        with open_blob(layer) as blob:
            yield from _member(name, layer.size, iter(partial(blob.read, BLOCK), b""))
    data = json.dumps(manifest).encode()
    yield from _member("manifest.json", len(data), [data])
    yield bytes(1024)


def _member(name: str, size: int, content: Iterable[bytes]) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.USTAR_FORMAT)
    yield from content
    yield bytes(-size % 512)


def remove_all(label: str, value: str) -> None:
    """Remove the containers with this label, running or not."""
    with connect() as client:
        for container in client.containers.list(all=True, filters={"label": f"{label}={value}"}):
            container.remove(force=True, v=True)


class Docker:
    """Runs containers in an engine."""

    enforces_limits = True

    def __init__(self) -> None:
        import docker

        self._client = docker.from_env(timeout=TIMEOUT)

    def start(self, spec: ContainerSpec, output: int, before_exec: Callable[[], None]) -> Container:
        del before_exec
        return _DockerContainer(self._client.containers.create(**options(spec)), output)


def options(spec: ContainerSpec) -> dict[str, Any]:
    """What the SDK's ``containers.create`` takes."""
    from docker.types import DeviceRequest, Mount

    gpus = DeviceRequest(count=spec.gpus, capabilities=[["gpu"]])
    return {
        "image": spec.root,
        "entrypoint": [spec.argv[0]],
        "command": list(spec.argv[1:]),
        "environment": dict(spec.env),
        "working_dir": spec.workdir,
        "user": f"{spec.uid}:{spec.gid}",
        "network_mode": spec.network,
        "hostname": None if spec.network == "host" else HOSTNAME,
        "labels": dict(spec.labels),
        "read_only": True,
        "tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},  # noqa: S108
        "shm_size": spec.shm,
        "nano_cpus": int(spec.cpus * 1e9),
        "mem_limit": spec.memory,
        "memswap_limit": spec.memory,
        "device_requests": [gpus] if spec.gpus else None,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "mounts": [
            Mount(mount.target, mount.source, type="bind", read_only=not mount.writable)
            for mount in spec.mounts
        ],
    }


class _DockerContainer:
    """One container; a thread copies its output and waits for its end."""

    def __init__(self, container: Any, output: int) -> None:
        self.pid: int | None = None
        self._container = container
        self._code: int | None = None
        self._oom = False
        self._output = os.dup(output)
        try:
            stream = container.attach(stdout=True, stderr=True, stream=True, logs=True)
            container.start()
        except BaseException:
            os.close(self._output)
            container.remove(force=True, v=True)
            raise
        self._thread = threading.Thread(target=self._follow, args=(stream,), daemon=True)
        self._thread.start()

    def _follow(self, stream: Iterator[bytes]) -> None:
        import signal

        try:
            with io.FileIO(self._output, "w") as file:
                for data in stream:
                    file.write(data)
            code = int(self._container.wait(timeout=None)["StatusCode"])
            self._container.reload()
            self._oom = bool(self._container.attrs["State"].get("OOMKilled"))
            self._code = code
        except Exception as error:
            print(f"container {self._container.id}: {error}", flush=True)
            self._code = 125
        # Wakes the supervisor, as a child process that ends does.
        os.kill(os.getpid(), signal.SIGCHLD)

    def ended(self) -> int | None:
        return self._code

    def terminate(self) -> None:
        # It may have ended just now.
        with contextlib.suppress(Exception):
            self._container.kill(signal="SIGTERM")

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self._container.kill()

    def out_of_memory(self) -> bool:
        return self._oom

    def close(self) -> None:
        self._thread.join(TIMEOUT)
        with contextlib.suppress(Exception):
            self._container.remove(force=True, v=True)
