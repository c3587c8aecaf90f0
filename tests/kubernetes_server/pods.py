"""One pod on its node: volumes, images, containers, probes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kubernetes_server import volumes
from tests.kubernetes_server.api import Api
from tests.kubernetes_server.container import Mount, Plan, Running
from tests.kubernetes_server.images import PullError, Unpacked
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import Object, condition, now, with_condition
from tests.kubernetes_server.store import Key

if TYPE_CHECKING:
    from tests.kubernetes_server.kubelet import Node

MESSAGE_LIMIT = 4096
_LOG_TAIL = 2048
_AGAIN = 0.3
"""Seconds between tries of what may heal: pulls, volumes. The real kubelet takes up to 300."""

_numbers = itertools.count(2)


class Pod:
    def __init__(self, api: Api, node: Node, key: Key, uid: str) -> None:
        self.key = key
        self.uid = uid
        self.node_name = ""
        self.containers: dict[str, Running] = {}
        self.waiting = "ContainerCreating"
        self.ending = asyncio.Event()
        """Somebody deletes it."""
        self.gone = asyncio.Event()
        """It is no longer in the store."""
        self.leaves: Callable[[], None] | None = None
        """Called when it has ended, and leaves its room on the node to others."""
        self._api = api
        self._node = node
        self._states: dict[str, Object] = {}
        self._killed_as: dict[str, str] = {}
        self._doom: Object | None = None
        self._doomed = asyncio.Event()
        number = next(_numbers)
        self._address = f"10.244.{number // 250 % 250}.{number % 250 + 1}"
        self._directory = node.directory / uid

    # -- what may be done to it

    def doom(self, status: Object) -> None:
        """Have its node kill it, and it end as failed with this status (reason, message, …)."""
        self._doom = status
        self._doomed.set()

    def kill(self, container: str, reason: str) -> None:
        """SIGKILL to a container, with the reason that the runtime gives."""
        self._killed_as[container] = reason
        self.containers[container].kill()

    def power_off(self) -> None:
        """Its node is gone: nothing runs, and nobody reports it."""
        for container in self.containers.values():
            container.kill()

    def set_condition(self, new: Object, **status: object) -> None:
        def change(item: Object) -> None:
            with_condition(item["status"], new)
            item["status"].update(status)

        self._api.store.edit(self.key, change)

    def clean(self) -> None:
        for container in self.containers.values():
            container.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def leave(self) -> None:
        if self.leaves is not None:
            self.leaves()
            self.leaves = None

    # -- its life

    async def run(self) -> None:
        item = self._api.store.get(*self.key)
        self._directory.mkdir(parents=True)
        names = [it["name"] for it in item["spec"]["containers"]]
        for spec in item["spec"]["containers"]:
            self._states[spec["name"]] = _status(spec, {"waiting": {"reason": self.waiting}})
        self._publish("Pending", condition("Initialized"), condition("Ready", "False"))
        life = asyncio.create_task(self._containers(item))
        try:
            ended = await self._until_end(life, item)
        finally:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
            for name in names:
                if name in self.containers:
                    self.containers[name].kill()
                    await self.containers[name].wait()
        if self._lost or self.gone.is_set():
            await self.gone.wait()
            return
        self._finish(ended)
        self.leave()
        await self.ending.wait()
        with contextlib.suppress(Refused):
            self._api.store.mark_deleted(self.key, 0)

    @property
    def _lost(self) -> bool:
        return self.node_name in self._node.lost

    async def _until_end(self, life: asyncio.Task[None], item: Object) -> Object:
        """Wait for the containers' own end, or end them; the status that it ends with."""
        limit = item["spec"].get("activeDeadlineSeconds")
        waits = {life, *(asyncio.ensure_future(it.wait()) for it in (self.ending, self._doomed))}
        try:
            done, _ = await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits - {life}:
                wait.cancel()
        if self._lost:
            await self.gone.wait()
            return {}
        grace = float(item["spec"]["terminationGracePeriodSeconds"])
        if life in done:
            life.result()
            return {}
        if self._doomed.is_set():
            await self._end_containers(life, 0)
            return self._doom or {}
        if self.ending.is_set():
            found = self._api.store.find(*self.key)
            asked = (found or {}).get("metadata", {}).get("deletionGracePeriodSeconds", 0)
            await self._end_containers(life, float(asked))
            return {}
        await self._end_containers(life, grace)
        words = "Pod was active on the node longer than the specified deadline"
        return {"phase": "Failed", "reason": "DeadlineExceeded", "message": words}

    async def _end_containers(self, life: asyncio.Task[None], grace: float) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds; 0: at once."""
        for container in self.containers.values():
            if grace:
                container.signal(signal.SIGTERM)
            else:
                container.kill()
        if not any(it.running for it in self.containers.values()):
            return
        await asyncio.wait({life}, timeout=grace or 10)
        for container in self.containers.values():
            container.kill()
        await asyncio.wait({life}, timeout=10)

    async def _containers(self, item: Object) -> None:
        made = await self._volumes(item)
        for spec in item["spec"].get("initContainers", ()):
            if await self._keep(item, spec, made):
                return
        await asyncio.gather(*(self._keep(item, it, made) for it in item["spec"]["containers"]))

    async def _volumes(self, item: Object) -> dict[str, Path]:
        said = ""
        while True:
            try:
                return volumes.make(self._api.store, item, self._directory, self._node.claims)
            except volumes.NotThere as error:
                if str(error) != said:
                    said = str(error)
                    self._api.event(
                        item,
                        "FailedMount",
                        f"MountVolume.SetUp failed for volume: {error}",
                        "Warning",
                    )
            await asyncio.sleep(_AGAIN)

    async def _pull(self, item: Object, spec: Object) -> Unpacked:
        image, tries = spec["image"], 0
        while True:
            words = self._node.pull_error(image)
            try:
                if not words:
                    return await asyncio.to_thread(self._node.pull, image)
            except PullError as error:
                words = str(error)
            failed = f'Failed to pull image "{image}": {words}'
            if tries == 0:
                self._api.event(item, "Failed", failed, "Warning")
            self._api.event(item, "Failed", "Error: ErrImagePull", "Warning")
            self._wait_for(spec, "ErrImagePull", words)
            await asyncio.sleep(_AGAIN)
            self._api.event(item, "BackOff", f'Back-off pulling image "{image}"')
            self._wait_for(spec, "ImagePullBackOff", f'Back-off pulling image "{image}": {failed}')
            tries += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._node.changed.wait(), min(_AGAIN * 2**tries, 3))

    def _wait_for(self, spec: Object, reason: str, message: str = "") -> None:
        self.waiting = f"{reason}: {message}" if message else reason
        state = {"reason": reason, **({"message": message} if message else {})}
        self._set(spec, {"waiting": state})

    async def _keep(self, item: Object, spec: Object, made: dict[str, Path]) -> int:
        """Run a container, again as its restart policy says; its last exit code."""
        name, policy = spec["name"], item["spec"]["restartPolicy"]
        image = await self._pull(item, spec)
        while True:
            plan = await self._plan(item, spec, image, made)
            message = self._directory / f"{name}.message"
            message.write_bytes(b"")
            message.chmod(0o666)
            target = Mount(message, spec["terminationMessagePath"], writable=True)
            started = now()
            container = await self._node.start(replace(plan, mounts=[*plan.mounts, target]))
            self.containers[name] = container
            await self._started(item, spec, container, started)
            code = await container.wait()
            if self._lost:
                return code
            state = self._terminated(spec, code, started, message)
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if not again or self.ending.is_set() or self._doomed.is_set():
                self._set(spec, {"terminated": state})
                return code
            count = self._states[name]["restartCount"] + 1
            waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
            self._set(spec, waiting, restartCount=count, lastState={"terminated": state})
            await asyncio.sleep(_AGAIN)

    async def _plan(
        self, item: Object, spec: Object, image: Unpacked, made: dict[str, Path]
    ) -> Plan:
        name = spec["name"]
        while True:
            try:
                own = volumes.environment(self._api.store, item, spec)
                break
            except volumes.NotThere as error:
                self._wait_for(spec, "CreateContainerConfigError", str(error))
                await asyncio.sleep(_AGAIN)
        uid, gid = identity(item, spec, image)
        security = {**item["spec"].get("securityContext", {}), **spec.get("securityContext", {})}
        while security.get("runAsNonRoot") and uid == 0:
            words = "container has runAsNonRoot and image will run as root"
            self._wait_for(spec, "CreateContainerConfigError", words)
            await asyncio.sleep(_AGAIN)
        command = spec.get("command") or image.command
        command = [*command, *(spec.get("args") or ())]
        host = item["spec"].get("hostname") or item["metadata"]["name"]
        usual = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME": host,
        }
        return Plan(
            scratch=self._directory / f"{name}.root",
            root=image.root,
            host_name=host[:63],
            address=self._address if self._node.own_network else "",
            command=[volumes.expand(it, own) for it in command],
            environment={**usual, **image.environment, **own},
            directory=spec.get("workingDir") or image.directory,
            uid=uid,
            gid=gid,
            writable=not security.get("readOnlyRootFilesystem"),
            mounts=[*image.mounts, *volumes.mounts(spec, made)],
        )

    async def _started(self, item: Object, spec: Object, container: Running, started: str) -> None:
        probe = spec.get("readinessProbe", {}).get("tcpSocket")
        self._api.event(item, "Started", f"Started container {spec['name']}")
        self._set(spec, {"running": {"startedAt": started}}, ready=not probe, started=True)
        if probe:
            task = asyncio.create_task(self._probe(spec, container, int(probe["port"])))
            # It ends with the container, and asks for the container first.
            task.add_done_callback(lambda it: it.cancelled() or it.exception())

    async def _probe(self, spec: Object, container: Running, port: int) -> None:
        probe, ready = spec["readinessProbe"], False
        period = float(probe.get("periodSeconds", 10))
        await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
        while container.running:
            answers = await container.listens(port)
            if answers is not ready and container.running:
                ready = answers
                state = self._states[spec["name"]]["state"]
                self._set(spec, state, ready=ready, started=True)
            await asyncio.sleep(min(period, 1))

    def _terminated(self, spec: Object, code: int, started: str, message: Path) -> Object:
        name = spec["name"]
        text = message.read_bytes()[-MESSAGE_LIMIT:] if message.exists() else b""
        if not text and code and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.containers[name].log.lines[-80:]
            text = b"".join(line for _, line in lines)[-_LOG_TAIL:]
        reason = self._killed_as.pop(name, "") or ("Error" if code else "Completed")
        state = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        state["containerID"] = f"containerd://{self.uid.replace('-', '')}"
        return {**state, **({"message": text.decode("utf-8", "replace")} if text else {})}

    # -- what it says

    def _set(self, spec: Object, state: Object, **fields: object) -> None:
        name = spec["name"]
        if name in self._states:
            kept = {key: self._states[name][key] for key in ("restartCount", "lastState")}
            self._states[name] = {**_status(spec, state), **kept, **fields}
            running = any("running" in it["state"] for it in self._states.values())
            before = any("waiting" in it["state"] for it in self._states.values())
            ready = all(it["ready"] for it in self._states.values())
            started = running or not before
            self._publish("Running" if started else "Pending", *_ready(ready))

    def _publish(self, phase: str, *conditions: Object) -> None:
        def change(item: Object) -> None:
            status = item["status"]
            status["phase"] = phase
            status["containerStatuses"] = list(self._states.values())
            if phase == "Running":
                status.update(podIP=self._address, podIPs=[{"ip": self._address}])
            for new in conditions:
                with_condition(status, new)

        if not self._lost:
            self._api.store.edit(self.key, change)

    def _finish(self, ended: Object) -> None:
        """Say how it ended: as its containers did, or as ``ended`` has it."""
        for name, status in self._states.items():
            if "terminated" not in status["state"]:
                unknown = "The container could not be located when the pod was terminated"
                state = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": unknown}
                self._states[name] = {**status, "state": {"terminated": state}, "ready": False}
        codes = [it["state"]["terminated"]["exitCode"] for it in self._states.values()]
        done = "PodCompleted" if not any(codes) else "PodFailed"

        def change(item: Object) -> None:
            status = item["status"]
            status["phase"] = "Failed" if any(codes) else "Succeeded"
            status["containerStatuses"] = list(self._states.values())
            extra = dict(ended)
            for new in (*_ready(False, done), *extra.pop("conditions", ())):
                with_condition(status, new)
            status.update(extra)

        self._api.store.edit(self.key, change)


def _status(spec: Object, state: Object) -> Object:
    image = spec["image"]
    return {
        "name": spec["name"],
        "state": state,
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": image,
        "imageID": image if "@" in image else "",
        "started": False,
    }


def _ready(ready: bool, reason: str = "") -> tuple[Object, Object]:
    said = reason if reason else "" if ready else "ContainersNotReady"
    return tuple(condition(it, str(ready), said) for it in ("Ready", "ContainersReady"))  # type: ignore[return-value]


def identity(item: Object, spec: Object, image: Unpacked) -> tuple[int, int]:
    """The user and group that a container runs as."""
    security = {**item["spec"].get("securityContext", {}), **spec.get("securityContext", {})}
    user, _, group = image.user.partition(":")
    uid = security.get("runAsUser", int(user) if user.isdigit() else 0)
    return uid, security.get("runAsGroup", int(group) if group.isdigit() else 0)
