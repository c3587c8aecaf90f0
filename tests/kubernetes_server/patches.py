"""PATCH: JSON merge patch (RFC 7386), strategic merge patch, and JSON patch (RFC 6902)."""

from __future__ import annotations

import copy
from typing import Any

from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import Object

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json-patch+json"

_KEYS = {
    "ownerReferences": "uid",
    "conditions": "type",
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
}
"""Lists of objects that a strategic patch merges, with what names an element."""


def patch(item: Object, kind: str, change: Any) -> Object:
    """The object with the change made; ``kind`` is the request's content type."""
    if kind in (MERGE, STRATEGIC):
        if not isinstance(change, dict):
            raise Refused(400, "the patch is not an object")
        merged: Object = _merge(item, change, kind == STRATEGIC, "")
        return merged
    if kind == JSON:
        return _operations(item, change)
    accepted = ", ".join((JSON, MERGE, STRATEGIC))
    raise Refused(
        415,
        f"the body of the request was in an unknown format - accepted media types include: {accepted}",
    )


def _merge(old: Any, new: Any, strategic: bool, name: str) -> Any:
    if isinstance(new, dict):
        if new.get("$patch") == "replace":
            return {key: value for key, value in new.items() if key != "$patch"}
        merged = dict(old) if isinstance(old, dict) else {}
        for key, value in new.items():
            if value is None:
                merged.pop(key, None)
            elif not (strategic and key.startswith("$")):
                merged[key] = _merge(merged.get(key), value, strategic, key)
        for key in [it for it in new if strategic and it.startswith("$deleteFromPrimitiveList/")]:
            kept = merged.get(key.partition("/")[2], [])
            merged[key.partition("/")[2]] = [it for it in kept if it not in new[key]]
        return merged
    if strategic and isinstance(new, list) and isinstance(old, list):
        if name == "finalizers":
            return [*old, *(it for it in new if it not in old)]
        if name in _KEYS:
            return _merge_list(old, new, _KEYS[name])
    return copy.deepcopy(new)


def _merge_list(old: list[Any], new: list[Any], key: str) -> list[Any]:
    merged = {it[key]: it for it in old}
    for part in new:
        if key not in part:
            raise Refused(400, f"map: {part} does not contain declared merge key: {key}")
        if part.get("$patch") == "delete":
            merged.pop(part[key], None)
        else:
            merged[part[key]] = _merge(merged.get(part[key]), part, True, "")
    return list(merged.values())


def _operations(item: Object, operations: Any) -> Object:
    item = copy.deepcopy(item)
    for step in operations:
        *way, last = [
            it.replace("~1", "/").replace("~0", "~") for it in step["path"].split("/")[1:]
        ]
        place: Any = item
        try:
            for part in way:
                place = place[int(part)] if isinstance(place, list) else place[part]
            _apply(place, last, step)
        except (KeyError, IndexError) as error:
            raise Refused(
                422,
                f"the server rejected our request due to an error in our request: {error}",
                "Invalid",
            ) from error
    return item


def _apply(place: Any, last: str, step: Any) -> None:
    what = step["op"]
    spot: Any = (len(place) if last == "-" else int(last)) if isinstance(place, list) else last
    if what == "test":
        if place[spot] != step["value"]:
            raise Refused(422, f"testing path {step['path']} value failed", "Invalid")
    elif what == "remove":
        del place[spot]
    elif what == "replace":
        place[spot] = step["value"]
    elif what == "add" and isinstance(place, list):
        place.insert(spot, step["value"])
    elif what == "add":
        place[spot] = step["value"]
    else:
        raise Refused(400, f"unknown operation {what!r} in a JSON patch")
