"""From a pod to the run's directory: the outcome of an element, however it was delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError, ResultLost
from clustrix_containers.results import inline
from clustrix_containers.worker import contract

from . import release
from .api import Api
from .manifest import NOTE_COMMAND
from .status import PodView
from .stream import BrokenOff, Command, command

SILENCE = 60.0
"""Seconds without a byte after which a stream is given up: its node may be gone."""
FAREWELL = 2.0
"""Seconds in which a pod says that it has heard that its result is here."""


def said_by(pod: PodView, run: str) -> inline.Inline | inline.Stored | None:
    """What a pod's termination message says of the outcome; ``None`` if it is not our worker's.

    ``ResultLost`` if the worker could not deliver it.
    """
    if not (pod.message or "").startswith((contract.INLINE, contract.STORED, contract.FAILED)):
        return None
    said = inline.read(pod.message or "")
    if isinstance(said, inline.Undelivered):
        text = f"element {pod.element}: its result was not delivered: {said.reason}"
        raise ResultLost(text, run=run, element=pod.element)
    return said


def from_pod(
    api: Api, namespace: str, pod: PodView, directory: Path, *, run: str, key: bytes
) -> None:
    """Take the outcome that a pod holds through an exec stream, and tell it that it may end.

    ``ClusterError`` if that breaks off: ``temporary`` says whether it may be tried again. Each
    wait has an end.
    """
    element, attempt = pod.element or 0, pod.attempt
    python = _interpreter(api, namespace, pod)
    place = (contract.RESULTS, str(element), str(attempt))
    with command(api, namespace, pod.name, (python, contract.GIVER, "give", *place)) as giver:
        receive(giver, pod.name, directory, element, attempt, run=run, key=key)
        heard = giver.tell(b"taken\n", FAREWELL)
    if not heard:
        words = (python, contract.GIVER, "taken", *place)
        release.later(api, namespace, pod.name, words)


def receive(
    giver: Command, pod: str, directory: Path, element: int, attempt: int, *, run: str, key: bytes
) -> None:
    """Bring the outcome into ``directory`` that a command in a pod writes.

    ``ClusterError`` if it breaks off, ``inline.Absent`` if it says that there is none.
    """
    try:
        inline.receive(giver.output(SILENCE), directory, element, attempt, key=key, run=run)
    except (BrokenOff, inline.StreamEnded) as error:
        if giver.said.startswith(contract.NOTHING):
            raise ClusterError(f"the pod {pod} gives no result: {giver.said}") from error
        raise ClusterError(
            f"taking the result out of the pod {pod} broke off: {giver.said or error}",
            temporary=True,
        ) from error
    except OSError as error:
        raise ClusterError(
            f"the result of the pod {pod} cannot be kept here: {error}", temporary=True
        ) from error


def _interpreter(api: Api, namespace: str, pod: PodView) -> str:
    """The image's Python: its Job notes the entry point."""
    import json

    full: Any = api.call("read a pod", api.core.read_namespaced_pod, pod.name, namespace)
    labels = full.metadata.labels
    name = labels.get("job-name") or labels["batch.kubernetes.io/job-name"]
    job = api.plain(api.call("read a Job", api.batch.read_namespaced_job, name, namespace))
    noted = json.loads(job["metadata"].get("annotations", {}).get(NOTE_COMMAND) or "[]")
    return str(noted[0]) if noted else f"{contract.VENV}/bin/python"
