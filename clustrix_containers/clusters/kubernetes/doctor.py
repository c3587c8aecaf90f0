"""What a Kubernetes target needs, asked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
from clustrix_containers.errors import ClusterError

from . import claim, manifest, stores
from .api import Api
from .server import Server
from .settings import Settings
from .submit import refused_queue

if TYPE_CHECKING:
    from . import KubernetesCluster

Finding = tuple[str, bool, str]

PERMISSIONS = (
    (
        "batch",
        "jobs",
        "",
        ("create", "get", "list", "watch", "patch", "delete", "deletecollection"),
    ),
    ("", "secrets", "", ("create", "get", "patch")),
    ("", "pods", "", ("get", "list", "watch", "delete")),
    ("", "pods", "log", ("get",)),
    ("", "pods", "exec", ("create", "get")),
    ("", "events", "", ("list",)),
)
"""Group, resource, subresource and the verbs that we use: what ``k8s/`` allows, and no more."""

CLAIM_PERMISSION = ("", "persistentvolumeclaims", "", ("get",))
"""What is needed besides where results go to a volume claim."""


def findings(cluster: KubernetesCluster) -> Sequence[Finding]:
    """Each thing looked at: its name, whether it is all right, a sentence."""
    try:
        api = cluster._api
        server = api.server
    except ClusterError as error:
        return [("API server", False, str(error))]
    settings = cluster.settings
    found: list[Finding] = [
        ("API server", True, f"{api.where}: Kubernetes {server.major}.{server.minor}"),
        ("arrays", True, server.describe(1000)),
        *_queue(settings, server),
        ("results", True, stores.describe(settings)),
    ]
    found += _permissions(api, settings)
    for look in (_volume_claim, _pull_secret, _quotas, _architecture, _dry_run):
        try:
            found += look(api, settings)
        except ClusterError as error:  # noqa: PERF203
            found.append((look.__name__.strip("_").replace("_", " "), False, str(error)))
    return found


def _queue(settings: Settings, server: Server) -> Iterator[Finding]:
    if words := refused_queue(settings, server):
        yield "queue", False, words
    elif settings.queue:
        yield "queue", True, f"{settings.queue}: Jobs stay suspended until Kueue resumes them"


def _permissions(api: Api, settings: Settings) -> Iterator[Finding]:
    from kubernetes.client import AuthorizationV1Api

    access = AuthorizationV1Api(api.client)
    more = (CLAIM_PERMISSION,) if settings.claim else ()
    for group, resource, subresource, verbs in (*PERMISSIONS, *more):
        name = f"{resource}/{subresource}" if subresource else resource
        missing = []
        for verb in verbs:
            asked = {
                "namespace": settings.namespace,
                "verb": verb,
                "group": group,
                "resource": resource,
                "subresource": subresource,
            }
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            answer: Any = api.call(
                "ask for permissions", access.create_self_subject_access_review, review
            )
            if not answer.status.allowed:
                missing.append(verb)
        if missing:
            text = f"in {settings.namespace} you may not {', '.join(missing)} {name}"
            yield "permissions", False, f"{text}: kubectl apply -k k8s/ gives what is needed"
        else:
            yield "permissions", True, f"{name}: {', '.join(verbs)}"


def _volume_claim(api: Api, settings: Settings) -> list[Finding]:
    if settings.claim is None:
        return []
    return [("volume claim", *claim.inspect(api, settings))]


def _pull_secret(api: Api, settings: Settings) -> list[Finding]:
    from kubernetes.client import ApiException

    if settings.pull_secret is None:
        return [("pull secret", True, "none: images are pulled without credentials")]
    name = settings.pull_secret
    try:
        secret: Any = api.call(
            "read the pull secret",
            api.core.read_namespaced_secret,
            name,
            settings.namespace,
            final=(403, 404),
        )
    except ApiException as error:
        text = f"there is no Secret {name} in {settings.namespace}"
        if error.status == 403:
            text = f"whether there is a Secret {name} cannot be seen"
        hint = f"kubectl create secret docker-registry {name} -n {settings.namespace} …"
        return [("pull secret", error.status == 403, f"{text}: {hint}")]
    fits = secret.type == "kubernetes.io/dockerconfigjson"
    return [("pull secret", fits, f"{name} is of type {secret.type}")]


def _quotas(api: Api, settings: Settings) -> list[Finding]:
    from kubernetes.client import ApiException

    try:
        listed: Any = api.call(
            "list quotas",
            api.core.list_namespaced_resource_quota,
            settings.namespace,
            final=(403,),
        )
    except ApiException:
        return [("quota", True, "cannot be seen: a Job that is over it waits and says so")]
    found = []
    for quota in listed.items:
        hard, used = quota.status.hard or {}, quota.status.used or {}
        shown = ", ".join(f"{name} {used.get(name, '0')} of {hard[name]}" for name in sorted(hard))
        found.append(("quota", True, f"{quota.metadata.name}: {shown}"))
    return found


def _architecture(api: Api, settings: Settings) -> list[Finding]:  # noqa: ARG001
    from kubernetes.client import ApiException

    try:
        nodes: Any = api.call("list nodes", api.core.list_node, limit=500, final=(403,))
    except ApiException:
        return [("architecture", True, "nodes cannot be seen; images are linux/amd64")]
    kinds = sorted({node.status.node_info.architecture for node in nodes.items})
    return [("architecture", "amd64" in kinds, f"nodes are {', '.join(kinds) or 'none'}")]


def _dry_run(api: Api, settings: Settings) -> list[Finding]:
    task = Task(
        run="doctor-dry-run",
        name="doctor",
        image="registry.example.org/doctor@sha256:" + "0" * 64,
        elements=range(2),
        resources=Resources(),
        directory=Path(),
    )
    for job in manifest.jobs(task, settings, api.server, held=True)[:1]:
        api.call(
            "make a Job (dry run)",
            api.batch.create_namespaced_job,
            settings.namespace,
            job,
            dry_run="All",
        )
    return [("dry run", True, "the server takes a Job as we make it")]
