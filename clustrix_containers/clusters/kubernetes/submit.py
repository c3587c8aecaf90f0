"""Making, adopting and deleting the objects of a run."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError
from clustrix_containers.jobs import Found, Resources, Task

from . import claim, manifest, stores
from .api import Api
from .settings import Settings
from .verdict import view_job

PARALLEL = 8
MOST_OWNERS = 2


def plan(api: Api, settings: Settings, task: Task) -> list[dict[str, Any]]:
    """The Secret, its values left out, and the Jobs."""
    server = api.server
    _refuse(task, api)
    secret = manifest.secret(task, settings, {}, b"")
    secret["data"] = dict.fromkeys(secret["data"], "")
    return [secret, *manifest.jobs(task, settings, server, held=_held(settings))]


def submit(api: Api, settings: Settings, task: Task) -> None:
    """Make a task's objects, or adopt those of the same name that are of the same run.

    Where Jobs can be suspended, the Job comes first and its Secret belongs to it from the start.
    Where not, the Secret comes first, so that no pod waits for it.
    """
    server = api.server
    _refuse(task, api)
    if settings.claim:
        claim.require(api, settings)
    key = (task.directory / "key").read_bytes()
    secret = manifest.secret(task, settings, stores.deliver(settings, task), key)
    jobs = manifest.jobs(task, settings, server, held=_held(settings))
    if server.indexed:
        made = _each(lambda job: _make_job(api, settings.namespace, job), jobs)
        if not _make_secret(api, settings, secret, made):
            _adopt_key(api, settings, task, key)
        if not settings.queue:
            _each(lambda job: _resume(api, settings.namespace, job), made)
        return
    _make_secret(api, settings, secret, ())
    made = _each(lambda job: _make_job(api, settings.namespace, job), jobs)
    _own(api, settings.namespace, secret["metadata"]["name"], made)


def cancel(api: Api, namespace: str, run: str, attempt: int, elements: Collection[int]) -> None:
    """Delete the Jobs of these elements; of an Indexed Job that has others too, their pods."""
    chosen = f"{manifest.selector(run)},{manifest.LABEL_ATTEMPT}={attempt}"
    listed = api.call("list Jobs", api.batch.list_namespaced_job, namespace, label_selector=chosen)
    found = [view_job(api.plain(job)) for job in listed.items]
    whole = []
    for job in found:
        if job.element in elements or (job.indexed and job.count <= len(elements)):
            whole.append(job)
        elif job.indexed:
            _delete_pods(api, namespace, chosen, elements)
    if len(whole) == len(found) > 1:
        api.call(
            "delete Jobs",
            api.batch.delete_collection_namespaced_job,
            namespace,
            label_selector=chosen,
            propagation_policy="Background",
        )
        return
    for job in whole:
        _gone_is_fine(
            api,
            "delete a Job",
            api.batch.delete_namespaced_job,
            job.name,
            namespace,
            propagation_policy="Background",
        )


def find(api: Api, settings: Settings, run: str) -> Found | None:
    """What the Jobs and the Secret of a run say of it; ``None`` if there is no such Job.

    What its client had not come to before it ended is done now: Jobs are made or resumed, a Secret
    that no pod has waited for yet is made with a new key.
    """
    namespace = settings.namespace
    chosen = f"{manifest.selector(run)},{manifest.LABEL_ATTEMPT}=0"
    listed = api.call("list Jobs", api.batch.list_namespaced_job, namespace, label_selector=chosen)
    jobs = [api.plain(job) for job in listed.items]
    if not jobs:
        return None
    notes = jobs[0]["metadata"]["annotations"]
    noted = json.loads(notes.get(manifest.NOTE_TASK) or "{}")
    task = Task(
        run=run,
        name=jobs[0]["metadata"]["labels"].get(manifest.LABEL_FUNCTION, "run"),
        image=notes[manifest.NOTE_IMAGE],
        elements=range(int(notes[manifest.NOTE_COUNT])),
        resources=Resources(**noted.get("resources", {})),
        directory=Path(),
        command=tuple(json.loads(notes[manifest.NOTE_COMMAND])),
        array=notes[manifest.NOTE_ARRAY] == "1",
        retries=int(noted.get("retries", 0)),
    )
    secret = _read_secret(api, namespace, run)
    if secret is None and jobs[0]["spec"].get("suspend"):
        body = manifest.secret(task, settings, stores.deliver(settings, task), os.urandom(32))
        _make_secret(api, settings, body, jobs)
        secret = _read_secret(api, namespace, run)
    if secret is None:
        raise ClusterError(f"the Secret with the key of run {run} is gone")
    _complete(api, namespace, jobs, secret)
    return Found(
        run=run,
        name=task.name,
        image=task.image,
        count=len(task.elements),
        array=task.array,
        key=_key(secret),
        ids=tuple(f"{namespace}/{run}/0.{element}" for element in task.elements),
        command=task.command,
        resources=task.resources,
        retries=task.retries,
    )


def _read_secret(api: Api, namespace: str, run: str) -> dict[str, Any] | None:
    from kubernetes.client import ApiException

    try:
        found = api.call(
            "read the run's Secret", api.core.read_namespaced_secret, run, namespace, final=(404,)
        )
    except ApiException:
        return None
    return api.plain(found)


def _key(secret: Mapping[str, Any]) -> bytes:
    return base64.b64decode(secret["data"]["key"])


def _complete(
    api: Api, namespace: str, jobs: Sequence[dict[str, Any]], secret: Mapping[str, Any]
) -> None:
    """Make what is missing of a submission that its client has not finished.

    Where each element has a Job, the Secret gets its owners when all of them are made: from then
    on what is missing was deleted, and stays so.
    """
    labels = jobs[0]["metadata"]["labels"]
    if manifest.LABEL_ELEMENT not in labels or secret["metadata"].get("ownerReferences"):
        if not labels.get(manifest.LABEL_QUEUE):
            _each(lambda job: _resume(api, namespace, job), jobs)
        return
    count = int(jobs[0]["metadata"]["annotations"][manifest.NOTE_COUNT])
    there = {int(job["metadata"]["labels"][manifest.LABEL_ELEMENT]): job for job in jobs}
    missing = [element for element in range(count) if element not in there]
    new = [manifest.like(jobs[0], element) for element in missing]
    made = _each(lambda job: _make_job(api, namespace, job), new) if new else []
    there.update(zip(missing, made, strict=True))
    _own(api, namespace, secret["metadata"]["name"], [there[it] for it in range(count)])


def _refuse(task: Task, api: Api) -> None:
    if task.max_parallel and len(task.elements) > task.max_parallel and not api.server.indexed:
        raise ClusterError(
            f"max_parallel cannot be kept by {api.server.describe(len(task.elements))}",
            hint="Leave max_parallel out, or give the namespace a ResourceQuota.",
        )


def _held(settings: Settings) -> bool:
    return settings.results["kind"] in ("auto", "hold")


def _make_job(api: Api, namespace: str, job: dict[str, Any]) -> dict[str, Any]:
    """The Job as the server has it: made now, or by an earlier try of the same run."""
    from kubernetes.client import ApiException

    name = job["metadata"]["name"]
    try:
        made = api.call(
            f"make the Job {name}",
            api.batch.create_namespaced_job,
            namespace,
            job,
            final=(409,),
        )
    except ApiException:
        made = api.call(f"read the Job {name}", api.batch.read_namespaced_job, name, namespace)
        if _whose(api.plain(made)) != _whose(job):
            raise ClusterError(
                f"there is a Job {name} in {namespace} that is not this run's"
            ) from None
    return api.plain(made)


def _whose(job: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The run and the image of a Job."""
    labels, notes = job["metadata"].get("labels", {}), job["metadata"].get("annotations", {})
    return labels.get(manifest.LABEL_RUN), notes.get(manifest.NOTE_IMAGE)


def _make_secret(
    api: Api, settings: Settings, secret: dict[str, Any], jobs: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether it was made now; False if there is one."""
    from kubernetes.client import ApiException

    secret["metadata"]["ownerReferences"] = [manifest.owner(job) for job in _owners(jobs)]
    try:
        api.call(
            "make the run's Secret",
            api.core.create_namespaced_secret,
            settings.namespace,
            secret,
            final=(409,),
        )
    except ApiException:
        return False  # an earlier try of this run
    return True


def _adopt_key(api: Api, settings: Settings, task: Task, key: bytes) -> None:
    """Take the key that the pods have: another machine may have gone on with this run meanwhile."""
    secret = _read_secret(api, settings.namespace, task.run)
    if secret is None or _key(secret) == key:
        return
    part = task.directory / ".key.part"
    part.unlink(missing_ok=True)
    part.touch(0o600)
    part.write_bytes(_key(secret))
    part.replace(task.directory / "key")


def _own(api: Api, namespace: str, secret: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Let the Secret belong to the first and the last Job: it stays until both are gone."""
    owners = [manifest.owner(job) for job in _owners(jobs)]
    api.call(
        "give the run's Secret its owners",
        api.core.patch_namespaced_secret,
        secret,
        namespace,
        {"metadata": {"ownerReferences": owners}},
    )


def _owners(jobs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return jobs if len(jobs) <= MOST_OWNERS else (jobs[0], jobs[-1])


def _resume(api: Api, namespace: str, job: Mapping[str, Any]) -> None:
    if job["spec"].get("suspend"):
        api.call(
            "resume the Job",
            api.batch.patch_namespaced_job,
            job["metadata"]["name"],
            namespace,
            {"spec": {"suspend": False}},
        )


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``function`` of each item, a few at a time; the first error ends it."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(function, items))


def _delete_pods(api: Api, namespace: str, chosen: str, elements: Collection[int]) -> None:
    pods = api.call("list pods", api.core.list_namespaced_pod, namespace, label_selector=chosen)
    for pod in map(api.plain, pods.items):
        metadata = pod["metadata"]
        index = metadata.get("annotations", {}).get(manifest.INDEX)
        if index is not None and int(index) in elements:
            _gone_is_fine(
                api, "delete a pod", api.core.delete_namespaced_pod, metadata["name"], namespace
            )


def _gone_is_fine(api: Api, action: str, function: Any, *arguments: Any, **options: Any) -> None:
    from kubernetes.client import ApiException

    try:
        api.call(action, function, *arguments, final=(404,), **options)
    except ApiException:
        return
