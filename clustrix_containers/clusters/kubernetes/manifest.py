"""The Job and the Secret of a run, as plain objects of the Kubernetes API.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/
"""

from __future__ import annotations

import base64
import copy
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
from clustrix_containers.containers.environment import outer_limit, worker_environment
from clustrix_containers.results.stores.volume import MOUNT_PATH
from clustrix_containers.worker import contract

from .api import Server
from .settings import Settings

MANAGER = "clustrix-containers"
LABEL_MANAGER = "app.kubernetes.io/managed-by"
PREFIX = "io.clustrix-containers"
LABEL_RUN = f"{PREFIX}/run"
LABEL_ATTEMPT = f"{PREFIX}/attempt"
LABEL_ELEMENT = f"{PREFIX}/element"
LABEL_FUNCTION = f"{PREFIX}/function"
LABEL_DIGEST = f"{PREFIX}/digest"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
ANNOTATION_IMAGE = f"{PREFIX}/image"
ANNOTATION_COUNT = f"{PREFIX}/count"
ANNOTATION_ARRAY = f"{PREFIX}/array"
ANNOTATION_COMMAND = f"{PREFIX}/command"
ANNOTATION_TASK = f"{PREFIX}/task"
"""What another machine needs to run a lost element again: resources, retries and the call's options, as JSON."""
CONTAINER = "main"
HOLD_PORT = 8473
MESSAGE_PATH = "/dev/termination-log"
DELIVERY = 60
"""Seconds that a worker may need to deliver a result that no container holds."""
INDEX = "batch.kubernetes.io/job-completion-index"


def selector(run: str | None = None, *, attempt: int | None = None) -> str:
    """The label selector of our Jobs and pods, or of one run's, or of one attempt's."""
    labels = {LABEL_MANAGER: MANAGER, LABEL_RUN: run, LABEL_ATTEMPT: attempt}
    return ",".join(f"{name}={value}" for name, value in labels.items() if value is not None)


def _job_name(task: Task, element: int | None) -> str:
    """The name is the run's and the attempt's, so that the same Job is never created twice."""
    name = f"{task.run}-{task.attempt}"
    alone = element is None or (element == 0 and len(task.elements) == 1)
    return name if alone else f"{name}-{element}"


def job_names(run: str, attempt: int, element: int) -> Sequence[str]:
    """The names that a Job of this element alone may have; see :func:`_job_name`."""
    name = f"{run}-{attempt}"
    return (f"{name}-{element}",) if element else (f"{name}-0", name)


def is_indexed(task: Task, server: Server) -> bool:
    """Whether the task is one Indexed Job: an index is an element's number, from 0."""
    return server.indexed and len(task.elements) > 1 and task.elements == range(len(task.elements))


def secret(
    task: Task, settings: Settings, deliver: Mapping[str, Any], key: bytes
) -> dict[str, Any]:
    """The run's key, and where results go. Nothing of it is in the Job."""
    data = {"key": key, "deliver": json.dumps(deliver).encode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": task.run,
            "namespace": settings.namespace,
            "labels": {LABEL_MANAGER: MANAGER, LABEL_RUN: task.run},
        },
        "type": "Opaque",
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def owner(job: Mapping[str, Any]) -> dict[str, Any]:
    """An owner reference to a Job that exists: what it owns goes when it goes."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
    }


def jobs(task: Task, settings: Settings, server: Server) -> list[dict[str, Any]]:
    """The Jobs of a task: one, or one per element where the server has no Indexed Jobs."""
    if is_indexed(task, server):
        return [_job(task, settings, server, None)]
    return [_job(task, settings, server, element) for element in task.elements]


def job(spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _job(task: Task, settings: Settings, server: Server, element: int | None) -> dict[str, Any]:
    labels = {
        LABEL_MANAGER: MANAGER,
        LABEL_RUN: task.run,
        LABEL_ATTEMPT: str(task.attempt),
        LABEL_FUNCTION: label(task.name),
        LABEL_DIGEST: task.image.rpartition("@sha256:")[2][:63],
        **({} if element is None else {LABEL_ELEMENT: str(element)}),
    }
    spec: dict[str, Any] = {
        "backoffLimit": task.retries,
        "ttlSecondsAfterFinished": settings.ttl,
        "template": _template(task, settings, server, element, labels),
    }
    if settings.deadline is not None:
        spec["activeDeadlineSeconds"] = settings.deadline
    if server.indexed:
        # Resumed when its Secret exists; by Kueue, if there is a queue.
        spec["suspend"] = True
    if element is None:
        count = len(task.elements)
        spec |= {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": min(count, task.max_parallel or count),
            # One element that fails must not end the others.
            "backoffLimit": task.retries * count if task.retries else count,
        }
        if server.limit_per_index:
            spec |= {"backoffLimitPerIndex": task.retries, "maxFailedIndexes": count}
            del spec["backoffLimit"]
    if server.failure_policy:
        # Evicted, preempted, its node lost or drained: not the user's failure.
        disrupted = [{"type": "DisruptionTarget", "status": "True"}]
        spec["podFailurePolicy"] = {"rules": [{"action": "Ignore", "onPodConditions": disrupted}]}
    noted = {
        "retries": task.retries,
        "resources": {**asdict(task.resources), "env": dict(task.resources.env)},
        **({"options": dict(task.options)} if task.options else {}),
    }
    return job(
        spec,
        name=_job_name(task, element),
        namespace=settings.namespace,
        labels={**labels, **({LABEL_QUEUE: settings.queue} if settings.queue else {})},
        annotations={
            ANNOTATION_IMAGE: task.image,
            ANNOTATION_COUNT: str(len(task.elements)),
            ANNOTATION_ARRAY: str(int(task.array)),
            ANNOTATION_COMMAND: json.dumps(list(task.command)),
            ANNOTATION_TASK: json.dumps(noted),
        },
    )


def like(other: Mapping[str, Any], element: int) -> dict[str, Any]:
    """The Job of another element of the same run, as the API server gave that of one."""

    def kept(names: Mapping[str, str]) -> dict[str, str]:
        # The server adds labels that select the pods of that Job.
        added = ("controller-uid", "job-name")
        return {
            name: value
            for name, value in names.items()
            if name not in added and not name.startswith("batch.kubernetes.io/")
        }

    before, own = other["metadata"], str(element)
    spec = copy.deepcopy({name: it for name, it in other["spec"].items() if name != "selector"})
    pod = spec["template"]
    pod["metadata"]["labels"] = {**kept(pod["metadata"]["labels"]), LABEL_ELEMENT: own}
    for container in pod["spec"]["containers"]:
        for variable in container.get("env", ()):
            if variable["name"] == contract.ENV_ELEMENT:
                variable["value"] = own
    return job(
        spec,
        name=before["name"].rpartition("-")[0] + f"-{own}",
        namespace=before["namespace"],
        labels={**kept(before["labels"]), LABEL_ELEMENT: own},
        annotations=kept(before["annotations"]),
    )


def label(text: str) -> str:
    """Any text as a label's value: at most 63 letters, digits, ``-``, ``_`` and ``.``."""
    return re.sub(
        r"[^A-Za-z0-9]+$|^[^A-Za-z0-9]+", "", re.sub(r"[^\w.-]+", "-", text, flags=re.A)[:63]
    )


def _template(
    task: Task,
    settings: Settings,
    server: Server,
    element: int | None,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    environment = {
        **task.resources.env,
        **worker_environment(
            run=task.run,
            attempt=task.attempt,
            element=element,
            cpus=task.resources.cpus,
            timeout=task.resources.timeout,
            grace=settings.grace,
        ),
        "USER": "clustrix",
    }
    container: dict[str, Any] = {
        "image": task.image,
        # A value is text to Kubernetes but for $(NAME), which $$ escapes.
        "env": [
            {"name": name, "value": value.replace("$", "$$")} for name, value in environment.items()
        ],
        "resources": _resources(task.resources, settings),
        "terminationMessagePath": MESSAGE_PATH,
    }
    if settings.results is None:
        # The worker's port answers while it holds a result: then the pod is Ready.
        container["readinessProbe"] = {
            "tcpSocket": {"port": HOLD_PORT},
            "periodSeconds": 1,
            "failureThreshold": 1000,
        }
    shm = {"medium": "Memory", "sizeLimit": quantity(task.resources.shm)}
    # Whatever uid the cluster forces on the pod, it can read its own run's key.
    key = {"secretName": task.run, "defaultMode": 0o444}
    mounts = [
        mounted("run", contract.RUN, read_only=True, secret=key),
        mounted("results", contract.RESULTS, emptyDir={}),
        mounted("tmp", "/tmp", emptyDir={}),  # noqa: S108
        mounted("shm", "/dev/shm", emptyDir=shm),  # noqa: S108
    ]
    if settings.volume:
        mounts.append(claimed(settings.volume.claim))
    # Of the Job, too: its controller (of 1.20) may never look at the time again.
    deadlines = [] if settings.deadline is None else [settings.deadline]
    limit = outer_limit(task.resources.timeout, settings.grace)
    if limit is not None:
        # The worker ends the function in time and reports that; this is for a worker that cannot.
        # A result that goes to a slow store has as long as one that is held.
        deadlines.append(math.ceil(limit) + DELIVERY + settings.hold)
    more = {"activeDeadlineSeconds": min(deadlines)} if deadlines else {}
    return template(settings, server, labels, container, mounts, **more)


Mounted = tuple[dict[str, Any], dict[str, Any]]
"""A volume of a pod, and its mount in the container."""


def mounted(name: str, path: str, *, read_only: bool = False, **source: Any) -> Mounted:
    mount = {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
    return {"name": name, **source}, mount


def claimed(claim: str, *, read_only: bool = False) -> Mounted:
    """The volume claim that results go to."""
    source = {"claimName": claim}
    return mounted("claim", MOUNT_PATH, read_only=read_only, persistentVolumeClaim=source)


def template(
    settings: Settings,
    server: Server,
    labels: Mapping[str, str],
    container: Mapping[str, Any],
    mounts: Sequence[Mounted],
    **more: object,
) -> dict[str, Any]:
    """A pod template as the target's options want every pod of ours to be."""
    security: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.user is not None:
        security |= {"runAsUser": settings.user, "runAsGroup": settings.user}
        if settings.volume:
            # A new disk belongs to root. Where the group is right already, no file is looked at.
            security["fsGroup"] = settings.user
            if server.group_policy:
                security["fsGroupChangePolicy"] = "OnRootMismatch"
    common = {
        "name": CONTAINER,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [mount for _, mount in mounts],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(settings.grace) + 5,
        "securityContext": security,
        "containers": [{**common, **container}],
        "volumes": [volume for volume, _ in mounts],
        **more,
    }
    chosen = {
        "imagePullSecrets": [{"name": settings.pull_secret}] if settings.pull_secret else None,
        "serviceAccountName": settings.service_account,
        "priorityClassName": settings.priority_class,
        "nodeSelector": dict(settings.node_selector),
        "tolerations": list(settings.tolerations),
        "affinity": dict(settings.affinity),
    }
    spec |= {name: value for name, value in chosen.items() if value}
    ours = {"metadata": {"labels": dict(labels)}, "spec": spec}
    merged: dict[str, Any] = functools.reduce(merge, settings.pod_template, ours)
    return merged


def _resources(resources: Resources, settings: Settings) -> dict[str, Any]:
    amounts = {}
    if resources.memory is not None:
        amounts["memory"] = quantity(resources.memory)
    if resources.gpus:
        amounts[settings.gpu_resource] = str(resources.gpus)
    return {
        "requests": {"cpu": f"{math.ceil(resources.cpus * 1000)}m", **amounts},
        # A fraction is for scheduling only: limited to it, Python would take seconds to start.
        "limits": {"cpu": str(math.ceil(resources.cpus)), **amounts},
    }


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them: ``150Mi`` where that is exact."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "ports": "containerPort",
}
"""The lists of a pod template that are merged element by element, and what names an element."""


def merge(base: Any, change: Any, name: str = "") -> Any:
    """``base`` with ``change`` over it, as ``kubectl patch --type=strategic`` does it.

    https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
    """
    if isinstance(base, list) and isinstance(change, list) and name in _KEYS:
        return _merge_lists(base, change, _KEYS[name])
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    if change.get("$patch") == "replace":
        return {key: value for key, value in change.items() if key != "$patch"}
    merged = {**base, **change}
    for key in base.keys() & change.keys():
        merged[key] = merge(base[key], change[key], key)
    return {key: value for key, value in merged.items() if change.get(key, value) is not None}


def _merge_lists(base: list[Any], change: list[Any], key: str) -> list[Any]:
    merged = list(base)
    for item in change:
        name = item.get(key) if isinstance(item, Mapping) else None
        places = [
            i for i, old in enumerate(merged) if isinstance(old, Mapping) and old.get(key) == name
        ]
        if isinstance(item, Mapping) and item.get("$patch") == "delete":
            merged = [old for i, old in enumerate(merged) if i not in places]
        elif name is not None and places:
            merged[places[0]] = merge(merged[places[0]], item)
        else:
            merged.append(item)
    return merged
