"""The resources that the server has."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
"""An object as JSON. What the store holds is never changed, only replaced."""


@dataclass(frozen=True)
class Resource:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As error messages name it: ``jobs.batch``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
JOBS = Resource("batch", "v1", "jobs", "Job")

RESOURCES = {
    (it.api_version, it.plural): it
    for it in (
        NAMESPACES,
        NODES,
        PODS,
        SECRETS,
        CONFIG_MAPS,
        EVENTS,
        JOBS,
        Resource("", "v1", "resourcequotas", "ResourceQuota"),
        Resource("", "v1", "limitranges", "LimitRange"),
        Resource("", "v1", "serviceaccounts", "ServiceAccount"),
        Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
        Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False),
    )
}

OWNERS = {(it.api_version, it.kind): it for it in RESOURCES.values()}


def now() -> str:
    return stamp(datetime.datetime.now(datetime.timezone.utc))


def stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> Object:
    at = now()
    found = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": at}
    return {
        **found,
        **({"reason": reason} if reason else {}),
        **({"message": message} if message else {}),
    }


def with_condition(status: Object, new: Object) -> None:
    """Set a condition in a (copied) status; its transition time moves only when it changes."""
    conditions = [it for it in status.get("conditions", ()) if it["type"] != new["type"]]
    old = [it for it in status.get("conditions", ()) if it["type"] == new["type"]]
    if old and old[0]["status"] == new["status"]:
        new = {**new, "lastTransitionTime": old[0]["lastTransitionTime"]}
    status["conditions"] = [*conditions, new]


def has_condition(item: Object, kind: str) -> bool:
    conditions = item.get("status", {}).get("conditions", ())
    return any(it["type"] == kind and it["status"] == "True" for it in conditions)
