"""What a Kubernetes target needs, checked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
from clustrix_containers.errors import ClusterError

from . import manifest
from .api import Api, Server
from .settings import Settings

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


def findings(api: Api, settings: Settings, results: str) -> Sequence[Finding]:
    """Each check: its name, whether it is all right, a sentence. ``results``: where these go."""
    server = api.server
    found: list[Finding] = [
        ("API server", True, f"{api.where}: {server}"),
        ("arrays", True, server.describe(1000)),
        *_queue(settings, server),
        ("results", True, results),
    ]
    checks = (_permissions, _volume_claim, _pull_secret, _quotas, _architecture, _dry_run)
    for check in checks:
        try:
            found += check(api, settings)
        except ClusterError as error:  # noqa: PERF203
            found.append((check.__name__.strip("_").replace("_", " "), False, str(error)))
    return found


def _queue(settings: Settings, server: Server) -> Iterator[Finding]:
    try:
        check_queue(settings, server)
    except ClusterError as error:
        yield "queue", False, error.message
        return
    if settings.queue:
        yield "queue", True, f"{settings.queue}: Jobs stay suspended until Kueue resumes them"


def check_queue(settings: Settings, server: Server) -> None:
    """``ClusterError`` if the server cannot have a queue."""
    if settings.queue and not server.indexed:
        raise ClusterError(
            f"the queue {settings.queue} is not possible on {server}: its Jobs cannot be created"
            " suspended (1.22), which Kueue needs",
            hint="Leave queue out for this target.",
            option="queue",
        )


def _permissions(api: Api, settings: Settings) -> Iterator[Finding]:
    from kubernetes.client import AuthorizationV1Api

    access = AuthorizationV1Api(api.client)
    more = (CLAIM_PERMISSION,) if settings.volume else ()
    for group, resource, subresource, verbs in (*PERMISSIONS, *more):
        name = f"{resource}/{subresource}" if subresource else resource
        missing = []
        for verb in verbs:
            named = {"group": group, "resource": resource, "subresource": subresource}
            attributes = {"namespace": settings.namespace, "verb": verb, **named}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            create = access.create_self_subject_access_review
            if not api.call("query permissions", create, review)["status"]["allowed"]:
                missing.append(verb)
        if missing:
            text = f"in {settings.namespace} you may not {', '.join(missing)} {name}"
            yield "permissions", False, f"{text}: kubectl apply -k k8s/ gives what is needed"
        else:
            yield "permissions", True, f"{name}: {', '.join(verbs)}"


def _volume_claim(api: Api, settings: Settings) -> list[Finding]:
    return [("volume claim", *_inspect_claim(api, settings))] if settings.volume else []


def check_claim(api: Api, settings: Settings) -> None:
    """``ClusterError`` if results cannot go to the volume claim of the target, or come from there."""
    if settings.volume:
        good, text = _inspect_claim(api, settings)
        if not good:
            hint = "docs/kubernetes.md describes what a claim for results needs."
            raise ClusterError(text, hint=hint, option="results")


def _inspect_claim(api: Api, settings: Settings) -> tuple[bool, str]:
    """Whether the claim can be used, and a sentence about it."""
    assert settings.volume is not None
    try:
        settings.volume.mounted("run")
    except ClusterError as error:
        return False, str(error).replace("\n ", "")
    claim = settings.volume.claim
    name = f"the volume claim {claim} in {settings.namespace}"
    found, visible = _look(api, "persistent_volume_claim", claim)
    if not visible:
        return True, f"{name} cannot be seen"
    if found is None:
        return False, f"{name} does not exist: kubectl get pvc -n {settings.namespace}"
    return claim_access(claim, found)


def claim_access(name: str, claim: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether pods can write to a claim as the API gives it, and which of them at once."""
    phase = claim.get("status", {}).get("phase", "")
    modes = claim["spec"].get("accessModes", [])
    text = f"{name} is {phase}, {', '.join(modes)}"
    if phase == "Lost":
        return False, f"the volume claim {name} has lost its volume (phase Lost)"
    if "ReadWriteMany" in modes:
        return True, text
    if "ReadWriteOnce" in modes:
        return True, f"{text}: only pods on one node at a time; elements on others wait for them"
    if "ReadWriteOncePod" in modes:
        return True, f"{text}: only one pod at a time; an array's elements wait for each other"
    return False, f"the volume claim {text}: no pod can write to it"


def _look(api: Api, kind: str, name: str) -> tuple[dict[str, Any] | None, bool]:
    """An object, if it exists, and whether this user may see it."""
    try:
        return api.read(kind, name), True
    except ClusterError as error:
        if error.fields.get("status") != 403:
            raise
        return None, False


def _pull_secret(api: Api, settings: Settings) -> list[Finding]:
    if settings.pull_secret is None:
        return [("pull secret", True, "none: images are pulled without credentials")]
    name = settings.pull_secret
    secret, visible = _look(api, "secret", name)
    if secret is not None:
        fits = secret["type"] == "kubernetes.io/dockerconfigjson"
        return [("pull secret", fits, f"{name} is of type {secret['type']}")]
    text = f"the Secret {name} in {settings.namespace} {'does not exist' if visible else 'cannot be seen'}"
    hint = f"kubectl create secret docker-registry {name} -n {settings.namespace} …"
    return [("pull secret", not visible, f"{text}: {hint}")]


def _quotas(api: Api, settings: Settings) -> list[Finding]:
    quotas = api.core.list_namespaced_resource_quota
    listed = api.call("list quotas", quotas, settings.namespace, none=(403,))
    if listed is None:
        return [("quota", True, "cannot be seen: a Job that exceeds it waits, with a message")]
    found = []
    for quota in listed["items"]:
        hard, used = (quota["status"].get(name, {}) for name in ("hard", "used"))
        shown = ", ".join(f"{name} {used.get(name, '0')} of {hard[name]}" for name in sorted(hard))
        found.append(("quota", True, f"{quota['metadata']['name']}: {shown}"))
    return found


def _architecture(api: Api, settings: Settings) -> list[Finding]:  # noqa: ARG001
    nodes = api.call("list nodes", api.core.list_node, limit=500, none=(403,))
    if nodes is None:
        return [("architecture", True, "nodes cannot be seen; images are linux/amd64")]
    names = sorted({node["status"]["nodeInfo"]["architecture"] for node in nodes["items"]})
    return [("architecture", "amd64" in names, f"nodes are {', '.join(names) or 'none'}")]


def _dry_run(api: Api, settings: Settings) -> list[Finding]:
    task = Task(
        run="doctor-dry-run",
        name="doctor",
        image="registry.example.org/doctor@sha256:" + "0" * 64,
        elements=range(2),
        resources=Resources(),
        directory=Path(),
    )
    for job in manifest.jobs(task, settings, api.server)[:1]:
        api.create("job", job, dry_run="All")
    return [("dry run", True, "the server accepts our Job")]
