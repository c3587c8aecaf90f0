"""A pod's volumes as directories of this machine, and its containers' environment."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tests.kubernetes_server.container import Mount
from tests.kubernetes_server.resources import CONFIG_MAPS, SECRETS, Object
from tests.kubernetes_server.store import Store


class NotThere(Exception):
    """A Secret, ConfigMap or claim that a pod needs is not there (yet)."""


def make(store: Store, pod: Object, directory: Path, claims: Mapping[str, Path]) -> dict[str, Path]:
    """The volumes that a container mounts, by name, in ``directory``.

    ``claims``: directories by persistent volume claim.
    """
    made = {}
    containers = (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))
    used = {it["name"] for own in containers for it in own.get("volumeMounts", ())}
    group = pod["spec"].get("securityContext", {}).get("fsGroup")
    for volume in pod["spec"].get("volumes", ()):
        if volume["name"] not in used:
            continue
        place = directory / volume["name"]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            if claim not in claims:
                raise NotThere(f'persistentvolumeclaim "{claim}" not found')
            made[volume["name"]] = claims[claim]
            continue
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o777 if "emptyDir" in volume else 0o755)
        for source in volume.get("projected", {}).get("sources", [volume]):
            default = volume.get("projected", volume).get("defaultMode", 0o644)
            _fill(store, pod, place, source, default, group)
        if "emptyDir" in volume and group is not None and os.geteuid() == 0:
            os.chown(place, 0, group)
            place.chmod(0o2777)
        made[volume["name"]] = place
    return made


def _fill(
    store: Store, pod: Object, place: Path, source: Object, default: int, group: int | None
) -> None:
    space = pod["metadata"]["namespace"]
    if "secret" in source:
        spec = source["secret"]
        name = spec.get("secretName") or spec.get("name")
        found = store.find(SECRETS, space, name)
        texts = {key: base64.b64decode(it) for key, it in (found or {}).get("data", {}).items()}
        missing = f'secret "{name}" not found'
    elif "configMap" in source:
        spec = source["configMap"]
        found = store.find(CONFIG_MAPS, space, spec["name"])
        texts = {key: it.encode() for key, it in (found or {}).get("data", {}).items()}
        missing = f'configmap "{spec["name"]}" not found'
    elif "emptyDir" in source:
        return
    else:
        raise NotThere(f"the tests' server has no volumes like this: {sorted(source)}")
    if found is None:
        if spec.get("optional"):
            return
        raise NotThere(missing)
    items = spec.get("items") or [{"key": key, "path": key} for key in texts]
    for item in items:
        if item["key"] not in texts:
            raise NotThere(f"references non-existent secret key: {item['key']}")
        path = place / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(texts[item["key"]])
        mode = item.get("mode", spec.get("defaultMode", default))
        if group is not None and os.geteuid() == 0:
            os.chown(path, 0, group)
            mode |= 0o440
        path.chmod(mode)


def mounts(container: Object, volumes: Mapping[str, Path]) -> list[Mount]:
    found = []
    for mount in container.get("volumeMounts", ()):
        source = volumes[mount["name"]]
        if sub := mount.get("subPath"):
            source /= sub
            if not source.exists():
                source.mkdir(parents=True)
        found.append(Mount(source, mount["mountPath"], not mount.get("readOnly")))
    return found


def environment(store: Store, pod: Object, container: Object) -> dict[str, str]:
    """The variables that the spec gives, with references to earlier ones expanded."""
    space = pod["metadata"]["namespace"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for kind, resource in (("secretRef", SECRETS), ("configMapRef", CONFIG_MAPS)):
            if kind in source:
                named = store.find(resource, space, source[kind]["name"])
                if named is None:
                    raise NotThere(f'{resource.kind.lower()} "{source[kind]["name"]}" not found')
                for key in named.get("data", {}):
                    found[source.get("prefix", "") + key] = _value(named, key)
    for variable in container.get("env", ()):
        origin = variable.get("valueFrom", {})
        if "fieldRef" in origin:
            found[variable["name"]] = _field(pod, origin["fieldRef"]["fieldPath"])
        elif "secretKeyRef" in origin or "configMapKeyRef" in origin:
            kind = "secretKeyRef" if "secretKeyRef" in origin else "configMapKeyRef"
            resource = SECRETS if kind == "secretKeyRef" else CONFIG_MAPS
            named = store.find(resource, space, origin[kind]["name"])
            if named is None or origin[kind]["key"] not in named.get("data", {}):
                raise NotThere(f'{resource.kind.lower()} "{origin[kind]["name"]}" not found')
            found[variable["name"]] = _value(named, origin[kind]["key"])
        else:
            found[variable["name"]] = expand(variable.get("value", ""), found)
    return found


def expand(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` where it is known; ``$$(NAME)`` is ``$(NAME)``."""

    def replace(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return known.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_.-][\w.-]*)\)", replace, text)


def _value(item: Object, key: str) -> str:
    text: str = item["data"][key]
    return base64.b64decode(text).decode() if item["kind"] == "Secret" else text


def _field(pod: Object, path: str) -> str:
    if match := re.match(r"^metadata\.(annotations|labels)\['(.*)'\]$", path):
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    found: object = pod
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return str(found)
