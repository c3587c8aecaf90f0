"""A client of a cluster, fake or real, and Jobs of busybox for it to run."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters.daemon import wait_until
from tests.fake_kubernetes.cluster import FakeCluster
from tests.fake_kubernetes.images import Pull, PullError, Unpacked

IMAGE = "registry.example.com/test/busybox@sha256:" + "0" * 64
SECONDS = 90
"""For anything that a slow machine with a real cluster may need."""


def busybox_root(directory: Path) -> Path:
    """A root file system that holds ``/busybox``."""
    program = shutil.which("busybox")
    assert program, "busybox is not installed: run 'make setup-system' as root"
    root = directory / "root"
    root.mkdir()
    shutil.copy(program, root / "busybox")
    (root / "tmp").mkdir(mode=0o1777)
    return root


def pull_busybox(root: Path) -> Pull:
    def pull(image: str) -> Unpacked:
        if image != IMAGE:
            raise PullError(f'rpc error: code = NotFound desc = "{image}": not found')
        return Unpacked(root)

    return pull


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
    command = ["/busybox", "sh", "-c", script]
    template = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [{"name": "main", "image": image, "command": command, **(main or {})}],
        **(pod or {}),
    }
    limit = {} if "backoffLimitPerIndex" in spec else {"backoffLimit": 0}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {**limit, "template": {"spec": template}, **spec},
    }


@dataclass(frozen=True)
class Client:
    """``image`` holds ``/busybox``. ``needs``: what every pod's spec needs there."""

    api: Any
    namespace: str
    image: str
    needs: dict[str, Any]

    @property
    def core(self) -> Any:
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self.api)

    @property
    def batch(self) -> Any:
        from kubernetes.client import BatchV1Api

        return BatchV1Api(self.api)

    def plain(self, answer: Any) -> Any:
        """What the client made of an answer, as JSON again."""
        return self.api.sanitize_for_serialization(answer)

    def start(self, script: str, *, pod: Any = None, name: str = "", **fields: Any) -> str:
        """Make a Job that runs a shell script; its name."""
        name = name or f"job-{secrets.token_hex(4)}"
        body = job(name, script, self.image, pod={**self.needs, **(pod or {})}, **fields)
        self.batch.create_namespaced_job(self.namespace, body)
        return name

    def delete(self, job: str) -> None:
        self.batch.delete_namespaced_job(job, self.namespace, propagation_policy="Background")

    def job(self, name: str) -> Any:
        return self.plain(self.batch.read_namespaced_job(name, self.namespace))

    def pods(self, job: str) -> list[Any]:
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"job-name={job}")
        return list(self.plain(listed)["items"])

    def running_pod(self, job: str) -> str:
        """The name of the Job's only pod, once that runs."""
        self.wait(
            lambda: "Running" in [it["status"]["phase"] for it in self.pods(job)], "running pod"
        )
        (pod,) = self.pods(job)
        return str(pod["metadata"]["name"])

    def finished(self, job: str) -> dict[str, Any]:
        """The Job's status, once it is Complete or Failed, with its conditions by type."""

        def conditions() -> dict[str, Any]:
            listed = self.job(job)["status"].get("conditions", [])
            return {it["type"]: it for it in listed if it["status"] == "True"}

        self.wait(lambda: bool({"Complete", "Failed"} & conditions().keys()), "end of the Job")
        return {**self.job(job)["status"], "conditions": conditions()}

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        assert wait_until(condition, SECONDS), f"no {what} in {SECONDS} s"


def terminated(pod: Any) -> Any:
    """How a pod's container ended."""
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]


def connected(cluster: FakeCluster, namespace: str = "default") -> Iterator[Client]:
    yield from opened(cluster.kubeconfig(), namespace, IMAGE, {})


def opened(kubeconfig: Path, namespace: str, image: str, needs: dict[str, Any]) -> Iterator[Client]:
    from kubernetes import config

    api: Any = config.new_client_from_config(str(kubeconfig))
    api.user_agent = "test"
    # Whoever waits for a failure does not want it hidden.
    api.rest_client.pool_manager.connection_pool_kw["retries"] = 0
    yield Client(api, namespace, image, needs)
    api.close()
    # Older clients leave their connections open.
    api.rest_client.pool_manager.clear()
