"""A volume that pods on every node of a cluster of our own may mount at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARED = "/srv/shared"
"""Where each node sees the directory that all of them share, as sites do with NFS."""


def claim(namespace: str, name: str, directory: str) -> Mapping[str, Any]:
    """A volume in ``directory`` below :data:`SHARED`, and a claim to it: a list of both."""
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": directory},
        "spec": {
            **common,
            "capacity": size,
            "hostPath": {"path": f"{SHARED}/{directory}"},
            "claimRef": {"namespace": namespace, "name": name},
        },
    }
    claimed = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**common, "volumeName": directory, "resources": {"requests": size}},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [volume, claimed]}
