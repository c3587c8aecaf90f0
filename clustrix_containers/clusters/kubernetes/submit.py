"""Making, adopting and finding the objects of a run."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Found, Task
from clustrix_containers.errors import ClusterError

from . import claim, manifest, stores
from .api import Api, body
from .server import Server
from .settings import Settings

PARALLEL = 8
MOST_OWNERS = 2


def plan(api: Api, settings: Settings, task: Task) -> list[dict[str, Any]]:
    """The Secret, its values left out, and the Jobs."""
    server = api.server
    _refuse(task, settings, api)
    secret = manifest.secret(task, settings, {}, b"")
    secret["data"] = dict.fromkeys(secret["data"], "")
    return [secret, *manifest.jobs(task, settings, server, held=_held(settings))]


def submit(api: Api, settings: Settings, task: Task) -> None:
    """Make a task's objects, or adopt those of the same name that are of the same run.

    Where Jobs can be suspended, the Job comes first and its Secret belongs to it from the start.
    Where not, the Secret comes first, so that no pod waits for it.
    """
    server = api.server
    _refuse(task, settings, api)
    if settings.claim:
        claim.require(api, settings)
    key = (task.directory / "key").read_bytes()
    secret = manifest.secret(task, settings, stores.deliver(settings, task), key)
    jobs = manifest.jobs(task, settings, server, held=_held(settings))
    if server.indexed:
        made = each(lambda job: _make_job(api, settings.namespace, job), jobs)
        if not _make_secret(api, settings, secret, made):
            _adopt_key(api, settings, task, key)
        if not settings.queue:
            each(lambda job: _resume(api, settings.namespace, job), made)
        return
    _make_secret(api, settings, secret, ())
    made = each(lambda job: _make_job(api, settings.namespace, job), jobs)
    _own(api, settings.namespace, secret["metadata"]["name"], made)


def find(api: Api, settings: Settings, run: str) -> Found | None:
    """What the Jobs and the Secret of a run say of it; ``None`` if there is no such Job.

    What its client had not come to before it ended is done now: Jobs are made or resumed, a Secret
    that no pod has waited for yet is made with a new key.
    """
    namespace = settings.namespace
    chosen = f"{manifest.selector(run)},{manifest.LABEL_ATTEMPT}=0"
    # Any of them tells all about the run.
    first = next(iter(_jobs(api, namespace, chosen, limit=1)), None)
    if first is None:
        return None
    notes = first["metadata"]["annotations"]
    noted = json.loads(notes.get(manifest.NOTE_TASK) or "{}")
    task = Task(
        run=run,
        name=first["metadata"]["labels"].get(manifest.LABEL_FUNCTION, "run"),
        image=notes[manifest.NOTE_IMAGE],
        elements=range(int(notes[manifest.NOTE_COUNT])),
        resources=Resources(**noted.get("resources", {})),
        directory=Path(),
        command=tuple(json.loads(notes[manifest.NOTE_COMMAND])),
        array=notes[manifest.NOTE_ARRAY] == "1",
        retries=int(noted.get("retries", 0)),
    )
    secret = _read_secret(api, namespace, run)
    if secret is None and first["spec"].get("suspend"):
        new = manifest.secret(task, settings, stores.deliver(settings, task), os.urandom(32))
        _make_secret(api, settings, new, [first])
        secret = _read_secret(api, namespace, run)
    if secret is None:
        raise ClusterError(f"the Secret with the key of run {run} is gone")
    _complete(api, namespace, chosen, first, secret)
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


def _jobs(api: Api, namespace: str, chosen: str, **options: Any) -> list[dict[str, Any]]:
    listed = api.call(
        "list Jobs",
        api.batch.list_namespaced_job,
        namespace,
        label_selector=chosen,
        _preload_content=False,
        **options,
    )
    return list(body(listed)["items"])


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
    api: Api, namespace: str, chosen: str, first: dict[str, Any], secret: Mapping[str, Any]
) -> None:
    """Make what is missing of a submission that its client has not finished.

    Where each element has a Job, the Secret gets its owners when all of them are made: from then
    on what is missing was deleted, and stays so.
    """
    labels = first["metadata"]["labels"]
    if manifest.LABEL_ELEMENT not in labels or secret["metadata"].get("ownerReferences"):
        if not labels.get(manifest.LABEL_QUEUE):
            _resume(api, namespace, first)
        return
    count = int(first["metadata"]["annotations"][manifest.NOTE_COUNT])
    there = {
        int(job["metadata"]["labels"][manifest.LABEL_ELEMENT]): job
        for job in _jobs(api, namespace, chosen)
    }
    missing = [element for element in range(count) if element not in there]
    new = [manifest.like(first, element) for element in missing]
    made = each(lambda job: _make_job(api, namespace, job), new) if new else []
    there.update(zip(missing, made, strict=True))
    _own(api, namespace, secret["metadata"]["name"], [there[it] for it in range(count)])


def refused_queue(settings: Settings, server: Server) -> str:
    """Why a queue cannot be kept there; empty if it can, or if none is wanted."""
    if not settings.queue or server.indexed:
        return ""
    return (
        f"the queue {settings.queue} cannot be kept by Kubernetes {server.major}.{server.minor}:"
        " its Jobs cannot be made suspended (1.22), which Kueue needs"
    )


def _refuse(task: Task, settings: Settings, api: Api) -> None:
    if words := refused_queue(settings, api.server):
        raise ClusterError(words, hint="Leave queue out for this target.", option="queue")
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


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``function`` of each item, a few at a time; the first error ends it."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(function, items))
