"""A cluster as the tests see it, played or real, through the official client."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clusters.daemon import wait_until
from tests.kubernetes_server import parts

SECONDS = 90
"""For anything that a slow machine with a real cluster may need."""


@dataclass(frozen=True)
class Peer:
    """``image`` holds ``/busybox``. ``needs``: what every pod's spec needs here."""

    client: Any
    namespace: str
    image: str
    needs: dict[str, Any]

    @property
    def core(self) -> Any:
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self.client)

    @property
    def batch(self) -> Any:
        from kubernetes.client import BatchV1Api

        return BatchV1Api(self.client)

    def plain(self, answer: Any) -> Any:
        """What the client made of an answer, as JSON again."""
        return self.client.sanitize_for_serialization(answer)

    def start(self, script: str, *, pod: Any = None, name: str = "", **fields: Any) -> str:
        """Make a Job that runs a shell script; its name."""
        name = name or f"job-{secrets.token_hex(4)}"
        body = parts.job(name, script, self.image, pod={**self.needs, **(pod or {})}, **fields)
        self.batch.create_namespaced_job(self.namespace, body)
        return name

    def job(self, name: str) -> Any:
        return self.plain(self.batch.read_namespaced_job(name, self.namespace))

    def pods(self, job: str) -> list[Any]:
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=f"job-name={job}")
        return list(self.plain(listed)["items"])

    def pod(self, job: str) -> Any:
        """The Job's newest pod, once there is one."""
        self.wait(lambda: bool(self.pods(job)), "a pod")
        return max(self.pods(job), key=lambda it: it["metadata"]["creationTimestamp"])

    def reach(self, job: str, *phases: str) -> Any:
        """The Job's pod, once it is in one of these phases."""
        self.wait(lambda: self.pod(job)["status"]["phase"] in phases, f"phase {phases}")
        return self.pod(job)

    def terminated(self, job: str) -> Any:
        pod = self.reach(job, "Succeeded", "Failed")
        return pod["status"]["containerStatuses"][0]["state"]["terminated"]

    def finished(self, job: str) -> dict[str, Any]:
        """The Job's status, once it is Complete or Failed, with its conditions by type."""

        def conditions() -> dict[str, Any]:
            listed = self.job(job)["status"].get("conditions", [])
            return {it["type"]: it for it in listed if it["status"] == "True"}

        self.wait(lambda: bool({"Complete", "Failed"} & conditions().keys()), "the Job's end")
        return {**self.job(job)["status"], "conditions": conditions()}

    def waiting(self, job: str) -> Any:
        """Why the pod's container waits."""
        statuses = self.pod(job)["status"].get("containerStatuses", [{}])
        return statuses[0].get("state", {}).get("waiting", {})

    def log(self, pod: str, **options: Any) -> str:
        """A pod's log, as it is: the client's own decoding differs between its versions."""
        read = self.core.read_namespaced_pod_log
        answer = read(pod, self.namespace, _preload_content=False, **options)
        return bytes(answer.data).decode()

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of the events about an object."""
        listed = self.core.list_namespaced_event(
            self.namespace, field_selector=f"involvedObject.name={name}"
        )
        return [(it["reason"], it["message"]) for it in self.plain(listed)["items"]]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        assert wait_until(condition, SECONDS), f"no {what} in {SECONDS} s"
