"""A user's changes to a pod template, merged as ``kubectl patch --type=strategic`` does it.

https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """``base`` with ``change`` over it; ``null`` removes, ``$patch: delete`` and ``replace`` act."""
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return _merge_maps(base, change)
    if isinstance(base, list) and isinstance(change, list) and name in _KEYS:
        return _merge_lists(base, change, _KEYS[name])
    return change


def _merge_maps(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    if change.get("$patch") == "replace":
        return {key: value for key, value in change.items() if key != "$patch"}
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = merge(merged[key], value, key)
        else:
            merged[key] = value
    return merged


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
