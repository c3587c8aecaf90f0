"""Containers through a Docker-compatible engine on this machine (the ``docker`` SDK).

Engines start containers in places of their own, so an engine elsewhere (tcp, ssh) cannot
see the run's directory: only a local socket will do. The image is loaded as a ``docker save``
archive, under its config digest, which is what an engine calls its id.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.clusters.local.plan import Plan
from clustrix_containers.errors import ClusterError, ImageError
from clustrix_containers.oci.model import Image

from .process import Container

RUN_LABEL = "io.clustrix-containers.attempt"
NAME_LABEL = "io.clustrix-containers.run"
ELEMENT_LABEL = "io.clustrix-containers.element"
SOCKET = "/var/run/docker.sock"
TIMEOUT = 60
STEP = 1 << 20


def unusable() -> str | None:
    """Why Docker cannot be used here; ``None`` if it can."""
    from importlib.util import find_spec

    host = os.environ.get("DOCKER_HOST", f"unix://{SOCKET}")
    if not host.startswith("unix://"):
        return f"DOCKER_HOST is {host}: a remote engine cannot see the run's directory"
    if not Path(host.removeprefix("unix://")).exists():
        return f"there is no socket {host.removeprefix('unix://')}"
    if find_spec("docker") is None:
        return "the docker SDK is not installed (pip install 'clustrix-containers[docker]')"
    try:
        with connect() as client:
            client.ping()
    except Exception as error:
        return f"the engine at {host} does not answer: {error}"
    return None


@contextlib.contextmanager
def connect() -> Iterator[Any]:
    """A client of the engine that DOCKER_HOST names, or the usual one."""
    import docker

    client = docker.from_env(timeout=TIMEOUT)
    try:
        yield client
    finally:
        client.close()


def user(client: Any, uid: int, gid: int) -> tuple[int, int]:
    """Whom to run as: in a rootless engine its root is the caller."""
    options = client.info().get("SecurityOptions") or []
    return (0, 0) if any("rootless" in option for option in options) else (uid, gid)


def load(client: Any, image: Image) -> str:
    """Have the image in the engine; its id. Layers that the engine knows are not sent."""
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
                raise ClusterError(f"the engine does not load {image.digest}: {error}") from error
            # What it seemed to have is not there: send everything.
            known = 0


def _known_layers(client: Any, image: Image) -> int:
    """How many of the image's first layers the engine has, as part of images of ours."""
    mine = [layer.diff_id for layer in image.layers]
    best = 0
    for other in client.images.list(name=REPOSITORY):
        theirs = other.attrs.get("RootFS", {}).get("Layers") or []
        common = 0
        for left, right in zip(mine, theirs, strict=False):
            if left != right:
                break
            common += 1
        best = max(best, common)
    return best


REPOSITORY = "clustrix-containers"


def _archive(image: Image, known: int) -> Iterator[bytes]:
    """The ``docker save`` form: config, layers, ``manifest.json``."""
    config = image.config_descriptor.digest.removeprefix("sha256:") + ".json"
    names = [f"{layer.digest.removeprefix('sha256:')}/layer.tar" for layer in image.layers]
    tag = f"{REPOSITORY}:{image.digest.removeprefix('sha256:')[:12]}"
    manifest = [{"Config": config, "RepoTags": [tag], "Layers": names}]
    yield from _member(config, len(image.config), [image.config])
    sent = set()
    for layer, name in list(zip(image.layers, names, strict=True))[known:]:
        if name in sent:
            continue
        sent.add(name)
        if not isinstance(layer.blob, Path):
            raise ImageError(f"the layer {layer.digest} is not on this machine")
        yield from _member(name, layer.size, _read(layer.blob))
    data = json.dumps(manifest).encode()
    yield from _member("manifest.json", len(data), [data])
    yield bytes(1024)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(STEP):
            yield data


def _member(name: str, size: int, content: Iterable[bytes]) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.USTAR_FORMAT)
    yield from content
    yield bytes(-size % 512)


def sweep(plan: Plan) -> None:
    """Remove the containers that a supervisor which was killed has left running."""
    with connect() as client:
        label = f"{RUN_LABEL}={plan.tag}"
        for container in client.containers.list(all=True, filters={"label": label}):
            container.remove(force=True, v=True)


class Docker:
    """Runs containers in an engine."""

    limits = True

    def __init__(self) -> None:
        import docker

        self._client = docker.from_env(timeout=TIMEOUT)

    def start(
        self, plan: Plan, element: int, env: dict[str, str], output: int, before: Callable[[], None]
    ) -> Container:
        del before
        options: dict[str, Any] = {}
        if plan.memory is not None:
            options.update(mem_limit=plan.memory, memswap_limit=plan.memory)
        if plan.network is not None:
            options["network_mode"] = plan.network
        if plan.gpus:
            from docker.types import DeviceRequest

            options["device_requests"] = [DeviceRequest(count=plan.gpus, capabilities=[["gpu"]])]
        container = self._client.containers.create(
            plan.root,
            entrypoint=[plan.argv[0]],
            command=list(plan.argv[1:]),
            environment=env,
            working_dir=plan.workdir,
            user=f"{plan.uid}:{plan.gid}",
            hostname=None if plan.network == "host" else "clustrix",
            labels={RUN_LABEL: plan.tag, NAME_LABEL: plan.run, ELEMENT_LABEL: str(element)},
            read_only=True,
            tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"},  # noqa: S108
            shm_size=plan.shm,
            nano_cpus=int(plan.cpus * 1e9),
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mounts=_mounts(plan),
            **options,
        )
        return _DockerContainer(container, output)


def _mounts(plan: Plan) -> list[Any]:
    from docker.types import Mount

    return [
        Mount(mount.target, mount.source, type="bind", read_only=not mount.writable)
        for mount in plan.mounts
    ]


class _DockerContainer:
    """One container; a thread copies what it prints and waits for its end."""

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
        # The supervisor sleeps until a signal or a request comes.
        os.kill(os.getpid(), signal.SIGCHLD)

    def ended(self) -> int | None:
        return self._code

    def terminate(self) -> None:
        self._signal("SIGTERM")

    def kill(self) -> None:
        self._signal("SIGKILL")

    def _signal(self, name: str) -> None:
        # It may have ended in this moment.
        with contextlib.suppress(Exception):
            self._container.kill(signal=name)

    def out_of_memory(self) -> bool:
        return self._oom

    def close(self) -> None:
        self._thread.join(TIMEOUT)
        with contextlib.suppress(Exception):
            self._container.remove(force=True, v=True)
