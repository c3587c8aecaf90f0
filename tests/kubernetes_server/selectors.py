"""Label and field selectors, as queries carry them."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import Object, Resource

Match = Callable[[Object], bool]

_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")
_FIELDS = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"),
    "events": (
        *(f"involvedObject.{it}" for it in ("kind", "namespace", "name", "uid", "apiVersion")),
        "reason",
        "type",
        "reportingComponent",
        "source",
    ),
    "jobs": ("status.successful",),
    "secrets": ("type",),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
}


def selector(resource: Resource, labels: str, fields: str) -> Match:
    tests = [_label(part) for part in _split(labels)]
    tests += [_field(resource, part) for part in _split(fields)]
    return lambda item: all(test(item) for test in tests)


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _label(text: str) -> Match:
    def value(item: Object) -> str | None:
        found: str | None = item["metadata"].get("labels", {}).get(name)
        return found

    if match := _SET.match(text):
        name, how, listed = match.groups()
        values = {it.strip() for it in listed.split(",")}
        return (
            (lambda it: value(it) in values) if how == "in" else lambda it: value(it) not in values
        )
    if "=" in text:
        name, wanted, negated = _equation(text)
        return lambda it: (value(it) == wanted) is not negated
    absent = text.startswith("!")
    name = text.lstrip("!").strip()
    if not re.fullmatch(r"[\w./-]+", name):
        raise Refused(400, f"unable to parse requirement: invalid label key {name!r}")
    return lambda it: (value(it) is None) is absent


def _field(resource: Resource, text: str) -> Match:
    name, wanted, negated = _equation(text)
    allowed = ("metadata.name", "metadata.namespace", *_FIELDS.get(resource.plural, ()))
    if name not in allowed:
        raise Refused(400, f'field label not supported: "{name}"')

    def value(item: Object) -> str:
        found: object = item
        for part in name.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        if name == "status.successful":
            found = item.get("status", {}).get("succeeded", 0)
        return str(found)

    return lambda it: (value(it) == wanted) is not negated


def _equation(text: str) -> tuple[str, str, bool]:
    """Name, value, and whether it is negated."""
    match = re.match(r"^([^=!]+)(!=|==|=)(.*)$", text)
    if not match:
        raise Refused(400, f"invalid selector: {text!r}; can't understand it")
    name, how, wanted = match.groups()
    return name.strip(), wanted.strip(), how == "!="
