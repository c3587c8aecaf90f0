"""Where results go that do not fit into a termination message, and how they come from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustrix_containers.clusters.task import Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.results import inline

from .api import Api
from .manifest import HOLD_PORT, MESSAGE_PATH, VOLUME_PATH
from .settings import Settings, seconds, volume

EXPIRES = {"s3": 86400.0, "registry": 3600.0}
"""Seconds for which a pod's credential lasts, unless ``expires:`` of the store says otherwise."""


def deliver(settings: Settings, task: Task) -> Mapping[str, Any]:
    """The file ``run/deliver`` of a task: the store, opened for as long as the run may take.

    ClusterError if a credential would end sooner.
    """
    return {"message": MESSAGE_PATH, "limit": 4096, "store": _open(settings, task)}


def _open(settings: Settings, task: Task) -> Mapping[str, Any]:
    kind = settings.results["kind"]
    if kind == "volume":
        place = volume(settings.results).directory(VOLUME_PATH, task.run)
        return {"kind": "volume", "path": str(place), "claim": settings.claim}
    if kind == "s3":
        from clustrix_containers.results import s3

        return s3.presign(_bucket(settings), task.run, seconds=_life(settings, task))
    if kind == "registry":
        from clustrix_containers.oci.model import MANIFEST, Descriptor, Reference
        from clustrix_containers.registry import Remote
        from clustrix_containers.results import registry

        image = Remote(Reference.parse(task.image)).image(task.image.rpartition("@")[2])
        subject = Descriptor(MANIFEST, image.digest, len(image.manifest))
        repository = _repository(settings, task.image)
        return registry.open_store(repository, task.run, subject, seconds=_life(settings, task))
    return {"kind": "hold", "port": HOLD_PORT, "seconds": settings.hold}


def fetch(
    api: Api,
    settings: Settings,
    image: str,
    run: str,
    said: inline.Stored | None,
    element: int,
    attempt: int,
    directory: Path,
    key: bytes,
) -> bool:
    """Bring an outcome from the target's store; ``said`` is what the pod said of it, if it did.

    False if there is none, or if what was said to be on a volume is not to be seen there yet.
    """
    kind = said.kind if said is not None else settings.results["kind"]
    if kind == "volume":
        from clustrix_containers.results import volume as files

        from . import reader

        place = files.mounted(volume(settings.results), run)
        if place is None:
            own = reader.of(api, settings, image, run)
            return own.take(said, element, attempt, directory, key=key)
        return files.fetch(place, run, said, element, attempt, directory, key=key)
    if kind == "s3":
        from clustrix_containers.results import s3

        return s3.fetch(_bucket(settings), run, said, element, attempt, directory, key=key)
    if kind == "registry":
        from clustrix_containers.results import registry

        repository = _repository(settings, image)
        return registry.fetch(repository, run, said, element, attempt, directory, key=key)
    return False


def describe(settings: Settings) -> str:
    """Where results go, in one sentence."""
    kind = settings.results["kind"]
    small = "Results of a few kilobytes come with the pod's termination message"
    if kind in ("auto", "hold"):
        return f"{small}; a pod keeps a larger one for {settings.hold} s until the client takes it."
    if kind == "volume":
        options = volume(settings.results)
        where = options.directory("", "RUN")
        how = f"are read below {options.mount}" if options.mount else "a pod reads them for you"
        return (
            f"{small}; larger ones stay on the volume claim {options.claim} in {where}, and {how}."
        )
    return f"{small}; larger ones go to the store {kind!r}."


def _life(settings: Settings, task: Task) -> float:
    given = settings.results.get("expires")
    kind = settings.results["kind"]
    life = EXPIRES[kind] if given is None else seconds(given, "results")
    return max(life, task.resources.timeout or 0.0)


def _bucket(settings: Settings) -> Any:
    from clustrix_containers.results import s3

    options = {
        key: value for key, value in settings.results.items() if key not in ("kind", "expires")
    }
    try:
        return s3.Options(**options)
    except TypeError as error:
        raise ClusterError(
            f"results: s3: {error}",
            hint="Its options are bucket, prefix, endpoint, region, profile and expires.",
            option="results",
        ) from error


def _repository(settings: Settings, image: str) -> str:
    return str(settings.results.get("repository") or image.rpartition("@")[0])
