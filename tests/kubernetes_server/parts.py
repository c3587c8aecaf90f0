"""What the tests of the server are made with: a root of busybox, and Jobs that run its shell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.kubernetes_server.images import PullError, Unpacked

IMAGE = "registry.example.com/test/busybox@sha256:" + "0" * 64


def busybox_root(directory: Path) -> Path:
    """A root file system that holds ``/busybox``."""
    program = shutil.which("busybox")
    assert program, "busybox is not installed: run 'make setup-system' as root"
    root = directory / "root"
    root.mkdir()
    shutil.copy(program, root / "busybox")
    (root / "tmp").mkdir(mode=0o1777)
    return root


def pull_busybox(root: Path) -> Any:
    def pull(image: str) -> Unpacked:
        if image != IMAGE:
            raise PullError(f'rpc error: code = NotFound desc = "{image}": not found')
        return Unpacked(root)

    return pull


def container(script: str, fields: Any) -> dict[str, Any]:
    return {"name": "main", "command": ["/busybox", "sh", "-c", script], **fields}


def job(
    name: str,
    script: str,
    image: str = IMAGE,
    *,
    pod: dict[str, Any] | None = None,
    main: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A Job of one container. ``pod`` and ``main``: more of its pods' and container's spec."""
    template = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [container(script, {"image": image, **(main or {})})],
        **(pod or {}),
    }
    limit = {} if "backoffLimitPerIndex" in spec else {"backoffLimit": 0}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {**limit, "template": {"spec": template}, **spec},
    }
