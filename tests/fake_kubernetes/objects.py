"""Objects of the Kubernetes API as JSON: the resources, conditions, errors and selectors."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
"""An object as JSON. What the store holds is never changed, only replaced."""

Matches = Callable[[Object], bool]

INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Resource:
    """A resource of version v1."""

    group: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """As error messages name it: ``jobs.batch``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACES = Resource("", "namespaces", "Namespace", namespaced=False)
NODES = Resource("", "nodes", "Node", namespaced=False)
PODS = Resource("", "pods", "Pod")
SECRETS = Resource("", "secrets", "Secret")
EVENTS = Resource("", "events", "Event")
QUOTAS = Resource("", "resourcequotas", "ResourceQuota")
JOBS = Resource("batch", "jobs", "Job")

_ALL = (NAMESPACES, NODES, PODS, SECRETS, EVENTS, QUOTAS, JOBS)
RESOURCES = {(it.api_version, it.plural): it for it in _ALL}


# -- conditions and phases


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> Object:
    found = {"type": kind, "status": status, "reason": reason, "message": message}
    return {**{k: v for k, v in found.items() if v}, "lastTransitionTime": now()}


def set_condition(status: Object, new: Object) -> None:
    """Set a condition in a (copied) status; its transition time moves only when it changes."""
    conditions = {it["type"]: it for it in status.get("conditions", ())}
    old = conditions.get(new["type"])
    if old and old["status"] == new["status"]:
        new = {**new, "lastTransitionTime": old["lastTransitionTime"]}
    status["conditions"] = list({**conditions, new["type"]: new}.values())


def has_condition(item: Object, kind: str) -> bool:
    conditions = item.get("status", {}).get("conditions", ())
    return any(it["type"] == kind and it["status"] == "True" for it in conditions)


def ended(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def terminating(item: Object) -> bool:
    return "deletionTimestamp" in item["metadata"]


# -- errors

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "AlreadyExists",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class ApiError(Exception):
    """An answer that is a ``Status`` object with an error code."""

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[code],
            "code": code,
        }


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, f'{resource.qualified} "{name}" not found')


def already_exists(resource: Resource, name: str) -> ApiError:
    return ApiError(409, f'{resource.qualified} "{name}" already exists')


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, f"too old resource version: {asked} ({oldest})")


# -- selectors


def selector(labels: str, fields: str) -> Matches:
    """What the queries ``labelSelector`` and ``fieldSelector`` choose."""
    tests = [_label(part) for part in re.split(r",(?![^(]*\))", labels) if part]
    tests += [_field(part) for part in fields.split(",") if part]
    return lambda item: all(test(item) for test in tests)


def _label(text: str) -> Matches:
    """``name=value`` or ``name in (value,value)``."""
    if match := re.match(r"^(\S+) in \(([^)]*)\)$", text):
        name, values = match[1], set(match[2].split(","))
    elif match := re.match(r"^([\w./-]+)=([\w.-]*)$", text):
        name, values = match[1], {match[2]}
    else:
        raise ApiError(400, f"the fake API server has no label selector like {text!r}")
    return lambda item: item["metadata"].get("labels", {}).get(name) in values


def _field(text: str) -> Matches:
    path, _, wanted = text.partition("=")

    def matches(item: Object) -> bool:
        found: object = item
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found == wanted

    return matches
