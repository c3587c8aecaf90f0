"""Which request a path and its query mean, and what the discovery paths answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.kubernetes_server.admission import VERBS
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import NAMESPACES, RESOURCES, Resource
from tests.kubernetes_server.selectors import Match, selector

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<part>[a-z]+))?)?$"
)
_METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Call:
    """A request for a resource, understood."""

    verb: str
    resource: Resource
    namespace: str
    name: str
    part: str
    query: Mapping[str, str]

    @property
    def what(self) -> str:
        return f"{self.resource.plural}/{self.part}" if self.part else self.resource.plural

    @property
    def dry(self) -> bool:
        asked = self.query.get("dryRun", "")
        if asked not in ("", "All"):
            raise Refused(400, f'dryRun: Unsupported value: "{asked}": supported values: "All"')
        return bool(asked)

    @property
    def match(self) -> Match:
        labels, fields = self.query.get("labelSelector", ""), self.query.get("fieldSelector", "")
        by_name = f"metadata.name={self.name}" if self.name else ""
        return selector(self.resource, labels, ",".join(filter(None, (fields, by_name))))

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "t", "true")

    def number(self, name: str) -> int | None:
        text = self.query.get(name, "")
        if text and not text.lstrip("-").isdigit():
            raise Refused(400, f'strconv.ParseInt: parsing "{text}": invalid syntax ({name})')
        return int(text) if text else None


def understand(method: str, path: str, query: Mapping[str, str]) -> Call:
    """The call, or :class:`Refused` with 404."""
    match = _PATH.match(path)
    if match is None and (match := re.match(r"^/api/v1/namespaces/(?P<name>[^/]+)$", path)):
        resource, namespace, name, part = NAMESPACES, "", match["name"], ""
    elif match is not None:
        version = match["core"] or f"{match['group']}/{match['version']}"
        found = RESOURCES.get((version, match["plural"]))
        if found is None:
            raise Refused(404, "the server could not find the requested resource", "NotFound")
        resource, namespace, name = found, match["namespace"] or "", match["name"] or ""
        part = match["part"] or ""
    else:
        raise Refused(404, "the server could not find the requested resource", "NotFound")
    verb = _METHODS.get(method, "get")
    watching = query.get("watch", "").lower() in ("1", "t", "true")
    if method == "GET" and (not name or watching):
        verb = "watch" if watching else "list"
    if method == "DELETE" and not name:
        verb = "deletecollection"
    if part == "exec":
        verb = "create" if method == "POST" else "get"
    return Call(verb, resource, namespace, name, part, query)


def version(minor: int) -> dict[str, str]:
    return {
        "major": "1",
        "minor": str(minor),
        "gitVersion": f"v1.{minor}.0",
        "gitCommit": "0" * 40,
        "gitTreeState": "clean",
        "buildDate": "2026-04-22T00:00:00Z",
        "goVersion": "go1.26",
        "compiler": "gc",
        "platform": "linux/amd64",
    }


def discovery(path: str) -> Any | None:
    """The answer to a path that says what there is, if it is one."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        groups = sorted({(it.group, it.version) for it in RESOURCES.values() if it.group})
        listed = [
            {"name": name, "versions": [entry], "preferredVersion": entry}
            for name, number in groups
            for entry in ({"groupVersion": f"{name}/{number}", "version": number},)
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    wanted = path.removeprefix("/api/").removeprefix("/apis/")
    resources = [it for (name, _), it in RESOURCES.items() if name == wanted]
    if not resources or wanted == path:
        return None
    kinds = [
        {
            "name": it.plural,
            "singularName": it.kind.lower(),
            "namespaced": it.namespaced,
            "kind": it.kind,
            "verbs": list(VERBS),
        }
        for it in resources
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": wanted,
        "resources": kinds,
    }
