"""What tests do to the cluster. Each takes effect before it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from tests.kubernetes_server.admission import Admission
from tests.kubernetes_server.api import Api
from tests.kubernetes_server.disturbances import Disturbance, Disturbances
from tests.kubernetes_server.kubelet import Kubelet
from tests.kubernetes_server.pods import Pod
from tests.kubernetes_server.refusals import Refused, stale
from tests.kubernetes_server.resources import (
    JOBS,
    NODES,
    PODS,
    RESOURCES,
    Object,
    condition,
    with_condition,
)
from tests.kubernetes_server.watching import Watches

T = TypeVar("T")


class Run(Protocol):
    """Runs a function in the server's loop, and gives its result."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


class Faults:
    def __init__(
        self,
        run: Run,
        api: Api,
        kubelet: Kubelet,
        admission: Admission,
        disturbances: Disturbances,
        watches: Watches,
    ) -> None:
        self._run = run
        self._api = api
        self._kubelet = kubelet
        self._admission = admission
        self._disturbances = disturbances
        self._watches = watches

    # -- requests: ``verb`` and ``resource`` as in RBAC, with the subresource; ``*`` is any

    def refuse(
        self,
        verb: str,
        resource: str,
        code: int,
        times: int = 1,
        message: str = "",
        retry_after: int | None = None,
    ) -> None:
        """Answer the next requests with an HTTP status (429, 500, 503, 410, …)."""
        words = message or {429: "too many requests, please try again later"}.get(
            code, "the server is currently unable to handle the request"
        )
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        refusal = Refused(code, words, headers=headers)
        self._disturb(Disturbance(verb, resource, times, refusal=refusal))

    def conflict(self, verb: str, resource: str, times: int = 1) -> None:
        """Say that somebody else has changed the object meanwhile."""
        kind = next(it for it in RESOURCES.values() if it.plural == resource.partition("/")[0])
        self._disturb(Disturbance(verb, resource, times, refusal=stale(kind, "object")))

    def hang(self, verb: str, resource: str, times: int = 1) -> Callable[[], None]:
        """Do not answer the next requests, until what is returned is called."""
        until = self._run(asyncio.Event)
        self._disturb(Disturbance(verb, resource, times, hang=until))
        return lambda: self._run(until.set)

    def lose_reply(self, verb: str, resource: str, times: int = 1) -> None:
        """Carry the next requests out, and cut the connection instead of answering."""
        self._disturb(Disturbance(verb, resource, times, lose_reply=True))

    def cut(self, verb: str, resource: str, times: int = 1) -> None:
        """Cut the connections of the next requests, with nothing done."""
        self._disturb(Disturbance(verb, resource, times, cut=True))

    def _disturb(self, disturbance: Disturbance) -> None:
        self._run(lambda: self._disturbances.waiting.append(disturbance))

    def calm(self) -> None:
        """No more trouble with requests, and everything is allowed again."""

        def change() -> None:
            for it in self._disturbances.waiting:
                if it.hang:
                    it.hang.set()
            self._disturbances.waiting.clear()
            self._admission.denied.clear()
            self._admission.quota.clear()
            self._admission.webhook.clear()

        self._run(change)

    # -- watches

    def expire_watches(self) -> None:
        """Forget the past: open watches end with an ERROR event of code 410, old revisions too."""

        def change() -> None:
            self._api.store.expire()
            self._watches.tell("expire")

        self._run(change)

    def expire_window(self) -> None:
        """Forget the past, but leave open watches alone: the next that resumes gets 410."""
        self._run(self._api.store.expire)

    def close_watches(self, abruptly: bool = False) -> None:
        self._run(lambda: self._watches.tell("cut" if abruptly else "close"))

    # -- what is allowed

    def deny(self, verb: str, resource: str) -> None:
        """RBAC: forbid it, and say so in access reviews."""
        self._run(lambda: self._admission.denied.add((verb, resource)))

    def exceed_quota(
        self,
        resource: str = "pods",
        words: str = "compute, requested: pods=1, used: pods=4, limited: pods=4",
    ) -> None:
        self._run(lambda: self._admission.quota.update({resource: words}))

    def refuse_admission(self, resource: str, words: str) -> None:
        """A webhook that denies creation."""
        self._run(lambda: self._admission.webhook.update({resource: words}))

    def allow(self) -> None:
        """Quota and webhook refuse nothing any more."""

        def change() -> None:
            self._admission.quota.clear()
            self._admission.webhook.clear()

        self._run(change)

    # -- pods

    def collect_pods(self, namespace: str, job: str) -> int:
        """Delete the finished pods of a Job, as the garbage collector does when there are many."""

        def change() -> int:
            done = [it for it in self._pods_of(namespace, job) if _ended(it)]
            for item in done:
                key = self._api.store.key(PODS, item)
                self._api.store.edit(key, lambda it: it["metadata"].pop("finalizers", None))
                self._api.store.mark_deleted(key, 0)
            return len(done)

        return self._run(change)

    def evict(self, namespace: str, pod: str) -> None:
        """The node is short of memory, and its kubelet evicts the pod."""
        words = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        target = condition("DisruptionTarget", "True", "TerminationByKubelet", words)
        status = {"phase": "Failed", "reason": "Evicted", "message": words, "conditions": [target]}
        self._run(lambda: self._pod(namespace, pod).doom(status))

    def preempt(self, namespace: str, pod: str) -> None:
        """The scheduler needs the room for a pod of higher priority."""
        words = "default-scheduler: preempting to accommodate a higher priority pod"

        def change() -> None:
            held = self._pod(namespace, pod)
            held.set_condition(
                condition("DisruptionTarget", "True", "PreemptionByScheduler", words)
            )
            item = self._api.store.get(PODS, namespace, pod)
            self._api.event(item, "Preempted", "Preempted by pod", "Normal", "default-scheduler")
            self._api.delete(held.key, {})

        self._run(change)

    def out_of_memory(self, namespace: str, pod: str, container: str = "") -> None:
        """The kernel kills a container for its memory: exit code 137, ``OOMKilled``."""

        def change() -> None:
            held = self._pod(namespace, pod)
            held.kill(container or next(iter(held.containers)), "OOMKilled")

        self._run(change)

    def kill_container(self, namespace: str, pod: str, container: str = "") -> None:
        """SIGKILL, from nobody that says so."""

        def change() -> None:
            held = self._pod(namespace, pod)
            held.kill(container or next(iter(held.containers)), "")

        self._run(change)

    # -- nodes

    def refuse_pulls(self, image: str, words: str) -> None:
        """Images with ``image`` in their reference cannot be pulled, as the registry says."""
        self._node(lambda: self._kubelet.node.unpullable.update({image: words}))

    def refuse_scheduling(self, words: str) -> None:
        """No pod finds a node; ``words`` are the scheduler's."""
        self._node(lambda: setattr(self._kubelet.node, "unschedulable", words))

    def heal_nodes(self) -> None:
        """Images can be pulled, and pods scheduled, again."""

        def change() -> None:
            self._kubelet.node.unpullable.clear()
            self._kubelet.node.unschedulable = ""

        self._node(change)

    def lose_node(self, name: str) -> None:
        """Its power fails. Nothing reports its pods' end; they are marked for deletion at once."""

        def change() -> None:
            self._kubelet.node.lost.add(name)
            self._set_ready(name, "Unknown", "NodeStatusUnknown")
            words = "Taint manager: deleting due to NoExecute taint"
            target = condition("DisruptionTarget", "True", "DeletionByTaintManager", words)
            for pod in self._kubelet.on_node(name):
                item = self._api.store.find(*pod.key)
                if item is None or _ended(item):
                    continue
                pod.power_off()
                pod.set_condition(target)
                pod.set_condition(condition("Ready", "False", "NodeNotReady"))
                self._api.delete(pod.key, {})

        self._node(change)

    def remove_node(self, name: str) -> None:
        """A lost node is taken out of the cluster: its pods fail, and are deleted."""

        def change() -> None:
            words = "PodGC: node no longer exists"
            target = condition("DisruptionTarget", "True", "DeletionByPodGC", words)
            for pod in self._kubelet.on_node(name):
                item = self._api.store.find(*pod.key)
                if item is None:
                    continue
                if not _ended(item):
                    pod.set_condition(target, phase="Failed")
                self._api.store.mark_deleted(pod.key, 0)
            self._api.store.mark_deleted((NODES, "", name), 0)

        self._node(change)

    def _node(self, change: Callable[[], object]) -> None:
        def change_and_tell() -> None:
            change()
            self._kubelet.node.tell()

        self._run(change_and_tell)

    def _set_ready(self, node: str, status: str, reason: str) -> None:
        def change(item: Object) -> None:
            with_condition(item["status"], condition("Ready", status, reason))

        self._api.store.edit((NODES, "", node), change)

    def _pod(self, namespace: str, name: str) -> Pod:
        return self._kubelet.pod(namespace, name)

    def _pods_of(self, namespace: str, job: str) -> list[Object]:
        uid = self._api.store.get(JOBS, namespace, job)["metadata"]["uid"]
        return [item for key, item in self._api.store.dependents(uid) if key[0] == PODS]


def _ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
