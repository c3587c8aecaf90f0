"""Scheduler and kubelets: each pod is a task that takes it from Pending to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes_server.api import Api
from tests.kubernetes_server.container import Container, Log, Plan, Running
from tests.kubernetes_server.images import Pull
from tests.kubernetes_server.pods import Pod
from tests.kubernetes_server.resources import NODES, PODS, Object, condition, has_condition, now
from tests.kubernetes_server.store import Change, Key


class NoContainer(Exception):
    """A container whose log or processes cannot be had now."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Node:
    """What the machines of the cluster have, and what is wrong with them now."""

    pull: Pull
    directory: Path
    claims: Mapping[str, Path]
    own_network: bool
    start: Callable[[Plan], Awaitable[Running]] = Container.start
    room: asyncio.Semaphore | None = None
    """How many pods run at once; None: as many as there are."""

    unpullable: dict[str, str] = field(default_factory=dict)
    """By a part of an image's reference (empty: all): the registry's words against it."""

    unschedulable: str = ""
    """The scheduler's words against every pod."""

    lost: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one of these has changed, and replaced then."""

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def pull_error(self, image: str) -> str:
        return next((words for part, words in self.unpullable.items() if part in image), "")


class Kubelet:
    """All nodes' kubelets, and the scheduler."""

    def __init__(self, api: Api, node: Node) -> None:
        self.node = node
        self._api = api
        self._pods: dict[str, Pod] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._stopped = False
        api.store.listen(self._changed)

    def pod(self, namespace: str, name: str) -> Pod:
        """The one that runs, or has run; KeyError if there is none."""
        found = self._api.store.get(PODS, namespace, name)
        return self._pods[found["metadata"]["uid"]]

    def on_node(self, name: str) -> list[Pod]:
        return [it for it in self._pods.values() if it.node_name == name]

    def log(self, pod: Object, container: str) -> Log:
        """:class:`NoContainer` if it has not started, or its node is lost."""
        self._check_node(pod)
        held = self._pods.get(pod["metadata"]["uid"])
        if held is None or container not in held.containers:
            raise NoContainer(
                400,
                f'container "{container}" in pod "{pod["metadata"]["name"]}" is waiting to start:'
                f" {held.waiting if held else 'ContainerCreating'}",
            )
        return held.containers[container].log

    def running(self, pod: Object, container: str) -> Running:
        self._check_node(pod)
        held = self._pods.get(pod["metadata"]["uid"])
        found = held.containers.get(container) if held else None
        if found is None or not found.running:
            raise NoContainer(500, f'container not found ("{container}")')
        return found

    async def stop(self) -> None:
        """Kill every container; none is left when this returns."""
        # Controllers go on making pods, which nobody starts any more.
        self._stopped = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check_node(self, pod: Object) -> None:
        name = pod["spec"].get("nodeName")
        if name in self.node.lost:
            raise NoContainer(
                500, f'Get "https://{name}:10250/": dial tcp: connect: no route to host'
            )

    def _changed(self, change: Change) -> None:
        if change.resource != PODS or self._stopped:
            return
        uid = change.item["metadata"]["uid"]
        if change.kind == "ADDED":
            pod = Pod(self._api, self.node, self._api.store.key(PODS, change.item), uid)
            self._pods[uid] = pod
            task = asyncio.get_running_loop().create_task(self._live(pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif change.kind == "DELETED":
            if pod_gone := self._pods.pop(uid, None):
                pod_gone.gone.set()
                pod_gone.ending.set()
        elif "deletionTimestamp" in change.item["metadata"] and uid in self._pods:
            self._pods[uid].ending.set()

    async def _live(self, pod: Pod) -> None:
        room = self.node.room
        try:
            entered = room is None or await self._enter(pod, room)
            if entered and await self._schedule(pod):
                await pod.run()
        except Exception as error:
            about = {"message": f"pod {pod.key[1]}/{pod.key[2]}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(about)
        finally:
            pod.leave()
            pod.clean()

    async def _enter(self, pod: Pod, room: asyncio.Semaphore) -> bool:
        """Wait until there is room for one more; false if the pod is deleted before."""
        if room.locked():
            count = len(self._api.store.select(NODES, "", lambda _: True))
            why = f"0/{count} nodes are available: {count} Too many pods."
            pod.set_condition(condition("PodScheduled", "False", "Unschedulable", why))
        entering = asyncio.ensure_future(room.acquire())
        try:
            await first_of(asyncio.shield(entering), pod.ending.wait())
        finally:
            entered = not entering.cancel()
        if entered:
            pod.leaves = room.release
        return entered

    async def _schedule(self, pod: Pod) -> bool:
        """Give the pod a node, as soon as there is one for it; false if it is deleted before."""
        said = ""
        while not pod.ending.is_set():
            changed = self.node.changed
            item = self._api.store.find(*pod.key)
            if item is None:
                return False
            if name := item["spec"].get("nodeName") or self._choose(item):
                self._bind(pod, name)
                return True
            why = self.node.unschedulable or self._no_node(item)
            if why != said:
                said = why
                pod.set_condition(condition("PodScheduled", "False", "Unschedulable", why))
                self._api.event(item, "FailedScheduling", why, "Warning", "default-scheduler")
            await first_of(changed.wait(), pod.ending.wait())
        return False

    def _fitting(self, item: Object) -> list[str]:
        wanted = item["spec"].get("nodeSelector", {}).items()
        return [
            it["metadata"]["name"]
            for it in self._api.store.select(NODES, "", lambda _: True)
            if wanted <= it["metadata"].get("labels", {}).items() and has_condition(it, "Ready")
        ]

    def _choose(self, item: Object) -> str:
        fitting = [] if self.node.unschedulable else self._fitting(item)
        self._turn += 1
        return fitting[self._turn % len(fitting)] if fitting else ""

    def _no_node(self, item: Object) -> str:
        count = len(self._api.store.select(NODES, "", lambda _: True))
        why = f"{count} node(s) didn't match Pod's node affinity/selector"
        return f"0/{count} nodes are available: {why}."

    def _bind(self, pod: Pod, name: str) -> None:
        pod.node_name = name

        def bind(item: Object) -> None:
            item["spec"]["nodeName"] = name

        item = self._api.store.edit(pod.key, bind)
        pod.set_condition(condition("PodScheduled"), startTime=now(), hostIP="127.0.0.1")
        if item:
            words = f"Successfully assigned {pod.key[1]}/{pod.key[2]} to {name}"
            self._api.event(item, "Scheduled", words, source="default-scheduler")


async def first_of(*waits: object) -> None:
    """Wait until one of these is done, and end the others."""
    tasks = [asyncio.ensure_future(it) for it in waits]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def key_of(namespace: str, name: str) -> Key:
    return PODS, namespace, name
