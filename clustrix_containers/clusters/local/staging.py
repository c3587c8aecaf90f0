"""From a task to its attempt: read the image, unpack or load it, lay out the run's directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clustrix_containers.clusters.staging import layout
from clustrix_containers.clusters.task import Task
from clustrix_containers.config.paths import paths
from clustrix_containers.containers import sandbox
from clustrix_containers.containers.container import ContainerSpec, Mount
from clustrix_containers.containers.environment import container_environment
from clustrix_containers.containers.runtimes import Availability
from clustrix_containers.containers.sandbox import rootfs
from clustrix_containers.errors import ClusterError
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Layout
from clustrix_containers.storage import atomic
from clustrix_containers.worker import contract

from .attempt import MESSAGE, AttemptSpec, control_directory
from .pool import Machine

if TYPE_CHECKING:
    from clustrix_containers.results.stores import ResultStore

    from . import LocalCluster

NOBODY = 65534
"""The user and group of containers when the caller is root."""


def prepare(
    cluster: LocalCluster, task: Task, directory: Path, runtime: Availability
) -> AttemptSpec:
    """Make everything ready and write the attempt's specification, last.

    ``ClusterError`` or ``ImageError`` before anything runs.
    """
    resources = task.resources
    if resources.gpus and not runtime.gpus:
        raise ClusterError(
            f"the {runtime.runtime} runtime cannot pass GPUs to containers",
            hint="Use runtime docker or apptainer.",
        )
    files = {"key": _read_key(directory)}
    image = read_layout(task.image)
    if cluster.store is not None:
        files["deliver"] = _deliver(cluster.store, task)
    is_root = os.geteuid() == 0
    owner = user = (NOBODY, NOBODY) if is_root else (os.geteuid(), os.getegid())
    mounts: tuple[Mount, ...] = ()
    if runtime.runtime == "docker":
        from clustrix_containers.containers import docker

        with docker.connect() as client:
            root = docker.load(client, image)
            if docker.is_rootless(client):
                user = (0, 0)
    else:
        if is_root and runtime.runtime == "sandbox" and not sandbox.is_full_root():
            # The user namespace maps the container's user to this one.
            owner = (0, 0)
        unpacked = rootfs.prepare(image, cluster.unpacked)
        root = str(unpacked.root)
        mounts = (*unpacked.mounts, *rootfs.host_files(unpacked.root))
    secrets = _lay_out(directory, task.attempt, files, owner)
    settings = image.settings
    argv = [*(settings.get("Entrypoint") or ()), *(settings.get("Cmd") or ())]
    spec = AttemptSpec(
        run=task.run,
        attempt=task.attempt,
        image=task.image,
        elements=task.elements,
        directory=directory,
        runtime=runtime.runtime,
        method=runtime.method,
        container=ContainerSpec(
            root=root,
            argv=tuple(argv) or (f"{contract.VENV}/bin/python", contract.WORKER),
            env=container_environment(settings.get("Env") or (), resources.env),
            mounts=(*mounts, secrets),
            workdir=str(settings.get("WorkingDir") or "/"),
            uid=user[0],
            gid=user[1],
            cpus=resources.cpus,
            memory=resources.memory,
            shm=resources.shm,
            gpus=resources.gpus,
            network=task.options.get("network", cluster.network),
        ),
        timeout=resources.timeout,
        max_parallel=task.max_parallel
        or cluster.max_parallel
        or Machine.this().capacity(resources.cpus, resources.memory),
        pool=paths().state / "pool",
        limits=cluster.limits,
        grace=task.options.get("grace", cluster.grace),
        delivers=cluster.store is not None,
    )
    atomic.write(spec.control / "attempt.json", spec.to_json(), mode=0o600, durable=True)
    return spec


def read_layout(reference: str) -> Image:
    """The image ``oci:DIRECTORY@sha256:…``, its layers with their blobs' paths.

    One that is in a registry for its results' sake (``HOST/NAME@sha256:…``) is in this user's
    layout, too.
    """
    name, _, digest = reference.rpartition("@")
    if name.startswith("oci:"):
        return Layout(name.removeprefix("oci:")).image(digest)
    if layout().find(digest or reference) == [digest]:
        return layout().image(digest)
    raise ClusterError(
        f"the local target runs images of an image layout on this machine, not {reference}",
        hint="Pull it into a layout first; its reference is then oci:DIRECTORY@sha256:….",
    )


def _deliver(store: ResultStore, task: Task) -> bytes:
    """The file ``run/deliver``; ``ClusterError`` if the store cannot be opened for the container."""
    opened = store.open(task.run, task.image, task.resources.timeout or 0.0)
    message = f"{contract.RESULTS}/{MESSAGE}"
    config = {"message": message, "limit": contract.MESSAGE_LIMIT, "store": opened}
    return json.dumps(config).encode()


def _read_key(directory: Path) -> bytes:
    try:
        return (directory / "key").read_bytes()
    except OSError as error:
        raise ClusterError(f"the run's key cannot be read: {error}") from error


def _lay_out(
    directory: Path, attempt: int, files: Mapping[str, bytes], owner: tuple[int, int]
) -> Mount:
    """Make the run's directories; results and ``files`` belong to the user of the container.

    Gives the mount of these files, which are secret.
    """
    control = control_directory(directory, attempt)
    run, results = control / "run", directory / "results"
    for path in (control, run, results, directory / "logs"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    foreign = owner != (os.geteuid(), os.getegid())
    for name, data in files.items():
        with atomic.replacing(run / name, mode=0o400) as file:
            file.write(data)
            if foreign:
                os.fchown(file.fileno(), *owner)
    if foreign:
        os.chown(results, *owner)
        os.chown(run, *owner)
    return Mount(str(run), contract.RUN)
