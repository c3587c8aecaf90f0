"""Scheduler and kubelets: each pod is a task that takes it from Pending to its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fake_kubernetes import volumes
from tests.fake_kubernetes.api import Api
from tests.fake_kubernetes.container import Container, Mount, Plan, Running
from tests.fake_kubernetes.images import Pull, PullError, Unpacked
from tests.fake_kubernetes.objects import (
    PODS,
    ApiError,
    Object,
    condition,
    now,
    set_condition,
    terminating,
)
from tests.fake_kubernetes.store import Change, Key
from tests.fake_kubernetes.volumes import MissingSecret

NODE_NAMES = ("node-1", "node-2")
_MESSAGE_LIMIT = 4096
_AGAIN = 0.3
"""Seconds between tries to pull an image or to mount a volume. A real kubelet takes up to 300."""


@dataclass
class Node:
    """What the machines of the cluster have."""

    pull: Pull
    directory: Path
    start: Callable[[Plan], Awaitable[Running]] = Container.start
    capacity: asyncio.Semaphore | None = None
    """How many pods run at once; None: any number."""


class Kubelet:
    """The kubelets of all nodes, and the scheduler."""

    def __init__(self, api: Api, node: Node) -> None:
        self.node = node
        self._api = api
        self._pods: dict[str, Pod] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._stopped = False
        api.store.listen(self._changed)

    def pod(self, namespace: str, name: str) -> Pod:
        return self._pods[self._api.store.get(PODS, namespace, name)["metadata"]["uid"]]

    def container(self, pod: Object) -> Running | None:
        held = self._pods.get(pod["metadata"]["uid"])
        return held.container if held else None

    async def stop(self) -> None:
        """Kill every container; none is left when this returns."""
        # The Job controller goes on making pods; they are not started any more.
        self._stopped = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        if change.resource != PODS or self._stopped:
            return
        uid = change.item["metadata"]["uid"]
        if change.kind == "ADDED":
            key = self._api.store.key(PODS, change.item)
            pod = self._pods[uid] = Pod(self._api, self.node, key, uid, next(self._numbers))
            task = asyncio.get_running_loop().create_task(self._run(pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif change.kind == "DELETED" and uid in self._pods:
            self._pods.pop(uid).deleted.set()
        elif terminating(change.item) and uid in self._pods:
            self._pods[uid].deleted.set()

    async def _run(self, pod: Pod) -> None:
        try:
            await pod.run()
        except Exception as error:
            about = {"message": f"pod {pod.key[1]}/{pod.key[2]}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(about)
        finally:
            pod.clean()


class Pod:
    """One pod of one container: its volumes, its image, its probe, and how it ends."""

    def __init__(self, api: Api, node: Node, key: Key, uid: str, number: int) -> None:
        self.key = key
        self.container: Running | None = None
        self.deleted = asyncio.Event()
        self._evicted = asyncio.Event()
        self._failure: tuple[Object, str] | None = None
        self._started = ""
        self._api = api
        self._node = node
        self._node_name = NODE_NAMES[number % len(NODE_NAMES)]
        self._address = f"10.244.{number // 250 % 250}.{number % 250 + 2}"
        self._directory = node.directory / uid
        self._message = self._directory / "message"

    def evict(self, target: Object, message: str) -> None:
        """Kill its container; it fails as ``Evicted``, with the condition ``target``."""
        self._failure = target, message
        self._evicted.set()

    def clean(self) -> None:
        if self.container is not None:
            self.container.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def run(self) -> None:
        """From Pending to its end, and to its deletion."""
        async with self._node.capacity or contextlib.nullcontext():
            if self.deleted.is_set():
                # As the pod garbage collector does with what has not been scheduled.
                self._edit(lambda item: item["status"].update(phase="Failed"))
            else:
                self._bind()
                await self._run_container()
                self._finish(await self.container.wait() if self.container else 137)
        await self.deleted.wait()
        with contextlib.suppress(ApiError):
            self._api.store.delete(self.key, 0)

    # -- its life

    async def _run_container(self) -> None:
        """Until it ends, or until it is to end; nothing of it is left when this returns."""
        life = asyncio.create_task(self._live())
        ends = [asyncio.ensure_future(it.wait()) for it in (self.deleted, self._evicted)]
        try:
            await asyncio.wait({life, *ends}, return_when=asyncio.FIRST_COMPLETED)
            found = self._api.store.find(*self.key)
            if self.container and self.deleted.is_set() and found:
                self.container.signal(signal.SIGTERM)
                grace = found["metadata"]["deletionGracePeriodSeconds"]
                await asyncio.wait({life}, timeout=grace)
        finally:
            for it in (life, *ends):
                it.cancel()
            await asyncio.wait({life})
            if self.container:
                self.container.kill()
                await self.container.wait()
        if not life.cancelled():
            life.result()

    async def _live(self) -> None:
        item = self._api.store.get(*self.key)
        self._directory.mkdir(parents=True)
        image = await self._pull(item["spec"]["containers"][0]["image"])
        self._message.touch()
        self._message.chmod(0o666)
        self._started = now()
        container = self.container = await self._node.start(await self._plan(item, image))
        probe = item["spec"]["containers"][0].get("readinessProbe")
        self._publish("Running", {"running": {"startedAt": self._started}}, ready=not probe)
        if probe:
            await self._probe(container, int(probe["tcpSocket"]["port"]))
        else:
            await container.wait()

    async def _probe(self, container: Running, port: int) -> None:
        """Ready while the port answers; until the container ends."""
        end, ready = asyncio.ensure_future(container.wait()), False
        while not end.done():
            answers = await container.listens(port)
            if answers is not ready and not end.done():
                ready = answers
                self._publish("Running", {"running": {"startedAt": self._started}}, ready=ready)
            await asyncio.wait({end}, timeout=1)

    async def _pull(self, image: str) -> Unpacked:
        pause = _AGAIN
        while True:
            try:
                return await asyncio.to_thread(self._node.pull, image)
            except PullError as error:  # noqa: PERF203
                self._set_waiting("ErrImagePull", str(error))
                await asyncio.sleep(_AGAIN)
                message = f'Back-off pulling image "{image}": {error}'
                self._set_waiting("ImagePullBackOff", message)
                pause = min(pause * 2, 3)
                await asyncio.sleep(pause)

    async def _plan(self, item: Object, image: Unpacked) -> Plan:
        (spec,) = item["spec"]["containers"]
        security = {**item["spec"]["securityContext"], **spec.get("securityContext", {})}
        user, _, group = image.user.partition(":")
        host = item["spec"].get("hostname") or item["metadata"]["name"]
        paths = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = volumes.environment(item)
        message = Mount(self._message, spec["terminationMessagePath"], writable=True)
        return Plan(
            scratch=self._directory / "container",
            root=image.root,
            host_name=host[:63],
            address=self._address,
            command=spec.get("command") or image.command,
            environment={"PATH": paths, "HOSTNAME": host, **image.environment, **own},
            directory=image.directory,
            uid=security.get("runAsUser", int(user or 0)),
            gid=security.get("runAsGroup", int(group or 0)),
            writable=not security.get("readOnlyRootFilesystem"),
            mounts=[*image.mounts, *await self._mounts(item), message],
        )

    async def _mounts(self, item: Object) -> list[Mount]:
        while True:
            try:
                return volumes.mounts(self._api.store, item, self._directory / "volumes")
            except MissingSecret:  # noqa: PERF203
                await asyncio.sleep(_AGAIN)

    # -- its status

    def _bind(self) -> None:
        def bind(item: Object) -> None:
            item["spec"]["nodeName"] = self._node_name
            item["status"]["startTime"] = now()
            set_condition(item["status"], condition("PodScheduled"))

        self._edit(bind)
        self._set_waiting("ContainerCreating")

    def _set_waiting(self, reason: str, message: str = "") -> None:
        self._publish("Pending", {"waiting": {"reason": reason, "message": message}})

    def _finish(self, code: int) -> None:
        """Publish how it ended: as its container did, or with the failure of an eviction."""
        text = self._message.read_bytes() if self._message.exists() else b""
        state: Object = {"exitCode": code, "reason": "Error" if code else "Completed"}
        if self._started:
            state.update(startedAt=self._started, finishedAt=now())
        if text:
            state["message"] = text[-_MESSAGE_LIMIT:].decode("utf-8", "replace")
        phase = "Failed" if code or self._failure else "Succeeded"
        self._publish(phase, {"terminated": state})
        if self._failure:
            target, message = self._failure

            def fail(item: Object) -> None:
                item["status"].update(reason="Evicted", message=message)
                set_condition(item["status"], target)

            self._edit(fail)

    def _publish(self, phase: str, state: Object, ready: bool = False) -> None:
        def change(item: Object) -> None:
            spec, status = item["spec"]["containers"][0], item["status"]
            container = {"name": spec["name"], "image": spec["image"], "imageID": spec["image"]}
            container.update(state=state, ready=ready, restartCount=0, lastState={})
            status.update(phase=phase, containerStatuses=[container], podIP=self._address)
            set_condition(status, condition("Ready", str(ready)))

        self._edit(change)

    def _edit(self, change: Callable[[Object], None]) -> None:
        self._api.store.edit(self.key, change)
