"""Making, adopting and deleting the objects of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        made = _each(lambda job: _make_job(api, settings, job, task), jobs)
        _make_secret(api, settings, secret, made)
        if not settings.queue:
            _each(lambda job: _resume(api, settings, job), made)
        return
    _make_secret(api, settings, secret, ())
    made = _each(lambda job: _make_job(api, settings, job, task), jobs)
    _own(api, settings, secret, made)


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


def find(api: Api, namespace: str, run: str) -> Found | None:
    """What the Jobs and the Secret of a run say of it; ``None`` if there is no such Job."""
    from kubernetes.client import ApiException

    chosen = f"{manifest.selector(run)},{manifest.LABEL_ATTEMPT}=0"
    listed = api.call("list Jobs", api.batch.list_namespaced_job, namespace, label_selector=chosen)
    jobs = [api.plain(job) for job in listed.items]
    if not jobs:
        return None
    try:
        secret: Any = api.call(
            "read the run's Secret", api.core.read_namespaced_secret, run, namespace, final=(404,)
        )
    except ApiException:
        raise ClusterError(f"the Secret with the key of run {run} is gone") from None
    notes = jobs[0]["metadata"]["annotations"]
    count = int(notes[manifest.NOTE_COUNT])
    task = json.loads(notes.get(manifest.NOTE_TASK) or "{}")
    return Found(
        run=run,
        name=jobs[0]["metadata"]["labels"].get(manifest.LABEL_FUNCTION, "run"),
        image=notes[manifest.NOTE_IMAGE],
        count=count,
        array=notes[manifest.NOTE_ARRAY] == "1",
        key=base64.b64decode(secret.data["key"]),
        ids=tuple(f"{namespace}/{run}/0.{element}" for element in range(count)),
        command=tuple(json.loads(notes[manifest.NOTE_COMMAND])),
        resources=Resources(**task.get("resources", {})),
        retries=int(task.get("retries", 0)),
    )


def _refuse(task: Task, api: Api) -> None:
    if task.max_parallel and len(task.elements) > task.max_parallel and not api.server.indexed:
        raise ClusterError(
            f"max_parallel cannot be kept by {api.server.describe(len(task.elements))}",
            hint="Leave max_parallel out, or give the namespace a ResourceQuota.",
        )


def _held(settings: Settings) -> bool:
    return settings.results["kind"] in ("auto", "hold")


def _make_job(api: Api, settings: Settings, job: dict[str, Any], task: Task) -> dict[str, Any]:
    """The Job as the server has it: made now, or by an earlier try of the same run."""
    from kubernetes.client import ApiException

    name = job["metadata"]["name"]
    try:
        made = api.call(
            f"make the Job {name}",
            api.batch.create_namespaced_job,
            settings.namespace,
            job,
            final=(409,),
        )
    except ApiException:
        made = api.call(
            f"read the Job {name}", api.batch.read_namespaced_job, name, settings.namespace
        )
        metadata = api.plain(made)["metadata"]
        labels, notes = metadata.get("labels", {}), metadata.get("annotations", {})
        if (labels.get(manifest.LABEL_RUN), notes.get(manifest.NOTE_IMAGE)) != (
            task.run,
            task.image,
        ):
            raise ClusterError(
                f"there is a Job {name} in {settings.namespace} that is not this run's"
            ) from None
    return api.plain(made)


def _make_secret(
    api: Api, settings: Settings, secret: dict[str, Any], jobs: Sequence[Mapping[str, Any]]
) -> None:
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
        return  # an earlier try of this run


def _own(
    api: Api, settings: Settings, secret: dict[str, Any], jobs: Sequence[Mapping[str, Any]]
) -> None:
    """Let the Secret belong to the first and the last Job: it stays until both are gone."""
    owners = [manifest.owner(job) for job in _owners(jobs)]
    api.call(
        "give the run's Secret its owners",
        api.core.patch_namespaced_secret,
        secret["metadata"]["name"],
        settings.namespace,
        {"metadata": {"ownerReferences": owners}},
    )


def _owners(jobs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return jobs if len(jobs) <= MOST_OWNERS else (jobs[0], jobs[-1])


def _resume(api: Api, settings: Settings, job: Mapping[str, Any]) -> None:
    if job["spec"].get("suspend"):
        api.call(
            "resume the Job",
            api.batch.patch_namespaced_job,
            job["metadata"]["name"],
            settings.namespace,
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
