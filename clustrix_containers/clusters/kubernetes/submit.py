"""Creating, adopting, finding and deleting the objects of a run."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.kubernetes.pods.views import view_job, view_pod
from clustrix_containers.clusters.task import DiscoveredRun, Handle, Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.storage import atomic

from . import manifest
from .api import Api, each
from .doctor import check_claim, check_queue
from .settings import Settings

MAX_OWNERS = 2
MAX_SELECTED = 50
"""Elements up to which their pods are selected by name, and not all of the run's."""


def plan(api: Api, settings: Settings, task: Task) -> list[dict[str, Any]]:
    """The Secret, its values left out, and the Jobs."""
    check_queue(settings, api.server)
    secret = manifest.secret(task, settings, {}, b"")
    secret["data"] = dict.fromkeys(secret["data"], "")
    return [secret, *manifest.jobs(task, settings, api.server)]


def submit(api: Api, settings: Settings, task: Task) -> None:
    """Create a task's objects, or adopt those of the same name that are of the same run.

    Where Jobs can be suspended, the Job comes first and its Secret belongs to it from the start.
    Where not, the Secret comes first, so that no pod waits for it.
    """
    check_queue(settings, api.server)
    check_claim(api, settings)
    key = (task.directory / "key").read_bytes()
    secret = manifest.secret(task, settings, deliver(settings, task), key)
    jobs = manifest.jobs(task, settings, api.server)
    if api.server.indexed:
        made = each(lambda job: _create_job(api, job), jobs)
        if not _create_secret(api, secret, made):
            _adopt_key(api, task, key)
        if not settings.queue:
            each(lambda job: _resume(api, job), made)
        return
    _create_secret(api, secret, ())
    made = each(lambda job: _create_job(api, job), jobs)
    _own(api, task.run, made)


def deliver(settings: Settings, task: Task) -> Mapping[str, Any]:
    """The file ``run/deliver`` of a task: its store, opened for as long as an element may take.

    ``ClusterError`` if a credential would end sooner.
    """
    store: Mapping[str, Any] = {
        "kind": "hold",
        "port": manifest.HOLD_PORT,
        "seconds": settings.hold,
    }
    if settings.results is not None:
        store = settings.results.open(task.run, task.image, task.resources.timeout or 0.0)
    return {"message": manifest.MESSAGE_PATH, "limit": 4096, "store": store}


def describe(settings: Settings) -> str:
    """Where results go, in one sentence."""
    larger = f"a pod keeps a larger one for {settings.hold} s until the client takes it"
    if settings.results is not None:
        larger = settings.results.describe()
    return f"Results of a few kilobytes come with the pod's termination message; {larger}."


def find(api: Api, settings: Settings, run: str) -> DiscoveredRun | None:
    """What the Jobs and the Secret of a run have of it; ``None`` if there is no such Job.

    What its client had not done before it ended is done now: Jobs are created or resumed, a Secret
    that no pod has waited for yet is created with a new key.
    """
    first = _first_job(api, run)
    if first is None:
        return None
    annotations = first["metadata"]["annotations"]
    noted = json.loads(annotations.get(manifest.ANNOTATION_TASK) or "{}")
    task = Task(
        run=run,
        name=first["metadata"]["labels"].get(manifest.LABEL_FUNCTION, "run"),
        image=annotations[manifest.ANNOTATION_IMAGE],
        elements=range(int(annotations[manifest.ANNOTATION_COUNT])),
        resources=Resources(**noted.get("resources", {})),
        directory=Path(),
        command=tuple(json.loads(annotations[manifest.ANNOTATION_COMMAND])),
        array=annotations[manifest.ANNOTATION_ARRAY] == "1",
        retries=int(noted.get("retries", 0)),
        options=noted.get("options", {}),
    )
    secret = api.read("secret", run)
    if secret is None and first["spec"].get("suspend"):
        new = manifest.secret(task, settings, deliver(settings, task), os.urandom(32))
        _create_secret(api, new, [first])
        secret = api.read("secret", run)
    if secret is None:
        raise ClusterError(f"the Secret with the key of run {run} no longer exists")
    _complete(api, run, first, secret)
    return DiscoveredRun(task, _key(secret), tuple(handles(api, task)))


def handles(api: Api, task: Task) -> Sequence[Handle]:
    """The handles of a task's elements: run, attempt and element say all but the namespace."""
    return [Handle(task.run, task.attempt, it, api.namespace) for it in task.elements]


def _first_job(api: Api, run: str) -> dict[str, Any] | None:
    """Any Job of a run's first attempt: it has all about the run."""
    return next(api.items("job", manifest.selector(run, attempt=0), limit=1), None)


def _complete(api: Api, run: str, first: dict[str, Any], secret: Mapping[str, Any]) -> None:
    """Create what is missing of a submission that its client has not finished.

    Where each element has a Job, the Secret gets its owners when all of them are created: from
    then on what is missing was deleted, and stays so.
    """
    labels = first["metadata"]["labels"]
    if manifest.LABEL_ELEMENT not in labels or secret["metadata"].get("ownerReferences"):
        if not labels.get(manifest.LABEL_QUEUE):
            _resume(api, first)
        return
    count = int(first["metadata"]["annotations"][manifest.ANNOTATION_COUNT])
    chosen = manifest.selector(run, attempt=0)
    there = {
        int(job["metadata"]["labels"][manifest.LABEL_ELEMENT]): job
        for job in api.items("job", chosen)
    }
    missing = [element for element in range(count) if element not in there]
    new = [manifest.like(first, element) for element in missing]
    there.update(zip(missing, each(lambda job: _create_job(api, job), new), strict=True))
    _own(api, run, [there[it] for it in range(count)])


def _create_job(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """The Job as the server has it: created now, or by an earlier try of the same run."""
    made = api.create("job", job)
    if made is None:
        name = job["metadata"]["name"]
        made = api.read("job", name)
        if made is None or _run_and_image(made) != _run_and_image(job):
            raise ClusterError(f"the Job {name} in {api.namespace} is not this run's")
    return made


def _run_and_image(job: Mapping[str, Any]) -> tuple[str | None, str | None]:
    labels, annotations = job["metadata"].get("labels", {}), job["metadata"].get("annotations", {})
    return labels.get(manifest.LABEL_RUN), annotations.get(manifest.ANNOTATION_IMAGE)


def _create_secret(api: Api, secret: dict[str, Any], jobs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it was created now; False if an earlier try of this run has created it."""
    secret["metadata"]["ownerReferences"] = _owners(jobs)
    return api.create("secret", secret) is not None


def _key(secret: Mapping[str, Any]) -> bytes:
    return base64.b64decode(secret["data"]["key"])


def _adopt_key(api: Api, task: Task, key: bytes) -> None:
    """Take the key that the pods have: another machine may have completed this run."""
    secret = api.read("secret", task.run)
    if secret is not None and _key(secret) != key:
        atomic.write(task.directory / "key", _key(secret), mode=0o600)


def _own(api: Api, run: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    api.patch("secret", run, {"metadata": {"ownerReferences": _owners(jobs)}})


def _owners(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """References to the first and the last Job: what they own stays until both are gone."""
    chosen = jobs if len(jobs) <= MAX_OWNERS else (jobs[0], jobs[-1])
    return [manifest.owner(job) for job in chosen]


def _resume(api: Api, job: Mapping[str, Any]) -> None:
    if job["spec"].get("suspend"):
        api.patch("job", job["metadata"]["name"], {"spec": {"suspend": False}})


def cancel(api: Api, run: str, attempts: Mapping[int, Collection[int]]) -> None:
    """End elements, by attempt: delete their Jobs; where an Indexed Job has others too, their pods.

    A run that is ended as a whole takes one deletion, whatever its size.
    """
    found = _first_job(api, run)
    first = view_job(found) if found else None
    if first is not None and first.count <= len(set().union(*attempts.values())):
        api.call(
            "delete the run's Jobs",
            api.batch.delete_collection_namespaced_job,
            api.namespace,
            label_selector=manifest.selector(run),
            propagation_policy="Background",
        )
        return
    for attempt, elements in attempts.items():
        if attempt == 0 and first is None:
            continue  # they are gone
        if attempt == 0 and first is not None and first.indexed:
            _give_up(api, run, elements)
        else:
            names = {name for it in elements for name in manifest.job_names(run, attempt, it)}
            each(lambda name: api.delete("job", name), sorted(names))


def _give_up(api: Api, run: str, elements: Collection[int]) -> None:
    """End some elements of an Indexed Job, which itself has no way to do that.

    Its controller may start the index of a deleted pod again, or one that has had no pod so far:
    so the run's Secret notes which are cancelled, and their workers end before they begin.
    """
    noted = {f"cancelled-{element}": "" for element in elements}
    api.patch("secret", run, {"data": noted}, none=(404,))
    chosen = manifest.selector(run, attempt=0)
    if api.server.labels_indexes and len(elements) <= MAX_SELECTED:
        chosen += f",{manifest.INDEX} in ({','.join(map(str, sorted(elements)))})"
    pods = map(view_pod, api.items("pod", chosen))
    live = [pod.name for pod in pods if pod.element in elements and not pod.final]
    each(lambda name: api.delete("pod", name), live)
