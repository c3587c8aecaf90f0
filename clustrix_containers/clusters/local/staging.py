"""From a task to a plan: read the image, unpack or load it, lay out the run's directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
from clustrix_containers.config.paths import paths
from clustrix_containers.containers import rootfs, runtimes, sandbox
from clustrix_containers.errors import ClusterError
from clustrix_containers.oci.model import Image
from clustrix_containers.registry import Layout
from clustrix_containers.worker import contract

from .plan import Mount, Plan, control
from .pool import Machine

if TYPE_CHECKING:
    from . import LocalCluster

NOBODY = 65534
"""Whom containers run as when the caller is root."""

HOME = "/tmp"  # noqa: S108
ENVIRONMENT = {
    "HOME": HOME,
    "USER": "clustrix",
    "LOGNAME": "clustrix",
    "TMPDIR": HOME,
    "XDG_CACHE_HOME": f"{HOME}/.cache",
    "XDG_CONFIG_HOME": f"{HOME}/.config",
    "MPLCONFIGDIR": f"{HOME}/.config/matplotlib",
    "NUMBA_CACHE_DIR": f"{HOME}/.cache/numba",
    "PYTHONNOUSERSITE": "1",
}
DEFAULTS = {
    "PATH": f"{contract.VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


def prepare(cluster: LocalCluster, task: Task, directory: Path) -> Plan:
    """Make everything ready and write ``plan.json``; whoever writes it first wins.

    ``ClusterError`` or ``ImageError`` before anything runs.
    """
    resources = task.resources
    chosen = runtimes.choose(cluster.runtime)
    if resources.gpus and chosen.runtime == "sandbox":
        raise ClusterError(
            "the built-in sandbox cannot hand over GPUs", hint="Use runtime docker or apptainer."
        )
    key = _read_key(directory)
    image = read_layout(task.image)
    uid, gid = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    if os.geteuid() == 0 and chosen.runtime == "sandbox" and not sandbox.is_full_root():
        # Within its user namespace it is somebody else in name only.
        owner = (0, 0)
    else:
        owner = (uid, gid)
    root, mounts = _place(chosen.runtime, image, cluster)
    if chosen.runtime == "docker":
        from clustrix_containers.containers import docker

        with docker.connect() as client:
            uid, gid = docker.user(client, uid, gid)
    mounts += _lay_out(directory, task.attempt, key, owner)
    settings = image.settings
    plan = Plan(
        run=task.run,
        name=task.name,
        attempt=task.attempt,
        image=task.image,
        elements=task.elements,
        directory=directory,
        runtime=chosen.runtime,
        means=chosen.means,
        root=root,
        argv=_argv(settings),
        workdir=str(settings.get("WorkingDir") or "/"),
        env=_env(settings, resources),
        mounts=mounts,
        uid=uid,
        gid=gid,
        cpus=resources.cpus,
        memory=resources.memory,
        timeout=resources.timeout,
        shm=resources.shm,
        gpus=resources.gpus,
        max_parallel=task.max_parallel
        or cluster.max_parallel
        or Machine.here().fits(resources.cpus, resources.memory),
        room=paths().state / "room",
        limits=cluster.limits,
        network=cluster.network,
        grace=cluster.grace,
    )
    return _write(plan)


def read_layout(reference: str) -> Image:
    """The image ``oci:DIRECTORY@sha256:…``, its layers with their blobs' paths."""
    if not reference.startswith("oci:"):
        raise ClusterError(
            f"the local target runs images of a layout on this machine, not {reference}",
            hint="Pull it into a layout first; it is then called oci:DIRECTORY@sha256:….",
        )
    directory, _, digest = reference.removeprefix("oci:").rpartition("@")
    return Layout(directory).image(digest)


def _read_key(directory: Path) -> bytes:
    try:
        return (directory / "key").read_bytes()
    except OSError as error:
        raise ClusterError(f"the run's key cannot be read: {error}") from error


def _place(runtime: str, image: Image, cluster: LocalCluster) -> tuple[str, tuple[Mount, ...]]:
    """Where the image is for this runtime, and the mounts that belong to it."""
    if runtime == "docker":
        from clustrix_containers.containers import docker

        with docker.connect() as client:
            return docker.load(client, image), ()
    unpacked = rootfs.prepare(image, cache_of(cluster))
    return str(unpacked.root), (*unpacked.mounts, *rootfs.host_files(unpacked.root))


def cache_of(cluster: LocalCluster) -> Path:
    """Where unpacked images lie."""
    if cluster.cache is not None:
        return cluster.cache.resolve()
    return paths().cache.resolve()


def _lay_out(
    directory: Path, attempt: int, key: bytes, owner: tuple[int, int]
) -> tuple[Mount, ...]:
    """Directories of the run; results and key belong to whom the container runs as."""
    place = control(directory, attempt)
    run, results = place / "run", directory / "results"
    for path in (place, run, results, directory / "logs"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if owner != (os.geteuid(), os.getegid()):
        os.chown(results, *owner)
        os.chown(run, *owner)
    temporary = run / f".key.{secrets.token_hex(4)}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        os.write(file, key)
        if owner != (os.geteuid(), os.getegid()):
            os.fchown(file, *owner)
    finally:
        os.close(file)
    temporary.replace(run / "key")
    return (
        Mount(str(results), contract.RESULTS, writable=True),
        Mount(str(run), contract.RUN),
    )


def _argv(settings: Mapping[str, Any]) -> tuple[str, ...]:
    words = [*(settings.get("Entrypoint") or ()), *(settings.get("Cmd") or ())]
    return tuple(map(str, words)) or (f"{contract.VENV}/bin/python", contract.WORKER)


def _env(settings: Mapping[str, Any], resources: Resources) -> dict[str, str]:
    """The image's own variables, ours, the user's; nothing of the caller's."""
    image = dict(str(item).partition("=")[::2] for item in settings.get("Env") or ())
    return {**DEFAULTS, **image, **ENVIRONMENT, contract.INSIDE: "1", **resources.env}


def _write(plan: Plan) -> Plan:
    """Put the plan in place, unless another client was quicker; the plan that counts."""
    final = plan.control / "plan.json"
    temporary = plan.control / f".plan.{secrets.token_hex(4)}"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(plan.to_json())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, final)
    except FileExistsError:
        return Plan.from_json(final.read_bytes())
    finally:
        temporary.unlink()
    return plan
