"""A pod's volumes as directories of this machine, and its container's environment."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from tests.fake_kubernetes.container import Mount
from tests.fake_kubernetes.objects import SECRETS, Object
from tests.fake_kubernetes.store import Store


class MissingSecret(Exception):
    """A Secret that a pod needs is not there (yet)."""


def mounts(store: Store, pod: Object, directory: Path) -> list[Mount]:
    """What the pod's container mounts. Its volumes are made in ``directory``."""
    for volume in pod["spec"].get("volumes", ()):
        place = directory / volume["name"]
        if "secret" in volume:
            _make_secret(store, pod["metadata"]["namespace"], volume["secret"], place)
        else:
            assert "emptyDir" in volume, f"the fake kubelet has no volume like {volume}"
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o777)
    return [
        Mount(directory / it["name"], it["mountPath"], not it.get("readOnly"))
        for it in pod["spec"]["containers"][0].get("volumeMounts", ())
    ]


def _make_secret(store: Store, namespace: str, volume: Object, place: Path) -> None:
    found = store.find(SECRETS, namespace, volume["secretName"])
    if found is None:
        raise MissingSecret(f'secret "{volume["secretName"]}" not found')
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)
    for key, text in found.get("data", {}).items():
        (place / key).write_bytes(base64.b64decode(text))
        (place / key).chmod(volume.get("defaultMode", 0o644))


def environment(pod: Object) -> dict[str, str]:
    """The variables of the container's spec, with references to earlier ones expanded."""
    found: dict[str, str] = {}
    for variable in pod["spec"]["containers"][0].get("env", ()):
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            match = re.match(r"^metadata\.labels\['(.*)'\]$", path)
            assert match, f"the fake kubelet has no fieldPath like {path}"
            found[variable["name"]] = pod["metadata"]["labels"][match[1]]
        else:
            found[variable["name"]] = _expand(variable.get("value", ""), found)
    return found


def _expand(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` where it is known; ``$$`` is ``$``."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)", replace, text)
