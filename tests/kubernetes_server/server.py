"""The server: a thread with everything in it, TLS in front, and a kubeconfig for clients."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import platform
import secrets
import shutil
import ssl
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from tests.clusters.certificates import Authority, Pair
from tests.kubernetes_server.admission import Admission
from tests.kubernetes_server.api import Api
from tests.kubernetes_server.collector import Collector
from tests.kubernetes_server.disturbances import Disturbances, Request
from tests.kubernetes_server.faults import Faults
from tests.kubernetes_server.forked import Forks
from tests.kubernetes_server.http import Front
from tests.kubernetes_server.images import Pull
from tests.kubernetes_server.jobs import JobController
from tests.kubernetes_server.kubelet import Kubelet, Node
from tests.kubernetes_server.resources import NAMESPACES, NODES, Object, condition
from tests.kubernetes_server.store import Store
from tests.kubernetes_server.watching import Watches

T = TypeVar("T")
NODE_NAMES = ("node-1", "node-2")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Settings:
    """How the cluster is. Times are in seconds."""

    minor: int = 36
    """It says that it is 1.``minor``, and knows of Jobs what that version knew."""

    window: int = 100_000
    """Changes that a watch can go back."""

    bookmark: float = 2
    backoff: float = 0.1
    """Before a failed pod is made again, doubled with each failure (really: 10)."""

    claims: Mapping[str, Path] = field(default_factory=dict)
    """Directories behind persistent volume claims."""

    own_network: bool = True
    """Each pod has a network of its own, and reaches nothing outside; else all have the host's."""

    forced_uid: int | None = None

    room: int | None = None
    """How many pods run at once; None: as many as there are."""

    forked: bool = False
    """Containers are forks of one process with the image's worker: for thousands of them."""

    batch: float = 0.01
    """In which the Job controller gathers what has changed (really: 1)."""


class Server:
    """A Kubernetes of one API server on 127.0.0.1, controllers and two nodes, in one thread.

    ``directory`` holds its keys and its pods' files. Use it in a ``with`` statement.
    """

    def __init__(self, directory: Path, pull: Pull, settings: Settings | None = None) -> None:
        self.directory = directory
        self.settings = settings or Settings()
        self.port = 0
        self.faults: Faults
        self._pull = pull
        self._token = secrets.token_urlsafe(24)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kubernetes", daemon=True
        )
        self._problems: list[str] = []
        self._loop.set_exception_handler(self._note)
        self._disturbances = Disturbances()
        self._runner: web.ServerRunner | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Have it answer when this returns."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make_keys()
        self._thread.start()
        self.run(self._assemble)
        self.bring_up()

    def stop(self) -> None:
        """End it, with every container; AssertionError if anything in it went wrong of itself."""
        self.take_down()
        self._await(self._kubelet.stop())
        self._await(self._forks.stop())
        self._await(_settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.directory / "pods", ignore_errors=True)
        assert not self._problems, "\n".join(self._problems)

    def take_down(self) -> None:
        """Stop the API server: nothing listens any more. Nodes and controllers go on."""
        if self._runner is not None:
            self.run(self._front.cut_all)
            self._await(self._runner.cleanup())
            self._runner = None

    def bring_up(self) -> None:
        """Have the API server listen (again, on the same port)."""
        self._await(self._listen())

    # -- for clients

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(
        self,
        user: str = "tester",
        namespace: str = "default",
        *,
        token: bool = False,
        days: float = 1,
    ) -> Path:
        """A kubeconfig (mode 0600). ``days``: how long its certificate lasts; negative: it has ended."""
        if token:
            identity = {"token": self._token}
        else:
            pair = self._authority.sign(f"client-{user}-{days}", user=user, days=days)
            identity = {
                "client-certificate-data": _encoded(pair.certificate),
                "client-key-data": _encoded(pair.key),
            }
        authority = _encoded(self._authority.pair.certificate)
        cluster = {"server": self.url, "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": identity}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": user, "namespace": namespace},
                }
            ],
        }
        path = self.directory / f"{user}-{secrets.token_hex(4)}.kubeconfig"
        path.touch(0o600)
        # JSON is YAML.
        path.write_text(json.dumps(config, indent=1))
        return path

    # -- for tests

    def requests(self) -> Counter[Request]:
        """How often each verb, resource and user agent was asked for."""
        return self.run(lambda: Counter(self._disturbances.requests))

    def sent(self) -> Counter[str]:
        """Bytes of the bodies of answers, by verb."""
        return self.run(lambda: Counter({**self._disturbances.sent, "watch": self._watches.sent}))

    def forget_requests(self) -> None:
        self.run(self._disturbances.requests.clear)

    def open_watches(self) -> int:
        return self.run(lambda: self._watches.count)

    def make_namespace(self, name: str) -> None:
        self.run(lambda: self._api.create(NAMESPACES, "", _namespace(name)))

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in the server's thread."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return done.result(60)

    # -- how

    def _note(self, loop: asyncio.AbstractEventLoop, about: Mapping[str, Any]) -> None:
        error = about.get("exception")
        lines = traceback.format_exception(error) if isinstance(error, BaseException) else []
        self._problems.append(f"{about['message']}\n{''.join(lines)}")

    def _await(self, coroutine: asyncio._CoroutineLike[T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)  # type: ignore[arg-type]

    def _make_keys(self) -> None:
        self._authority = Authority(self.directory / "keys")
        self._authority.make()
        self._pair: Pair = self._authority.sign("server")

    def _assemble(self) -> None:
        settings, store = self.settings, Store(self.settings.window)
        admission = Admission(forced_uid=settings.forced_uid)
        self._api = Api(store, Collector(store, self._loop), admission, settings.minor)
        node = Node(self._pull, self.directory / "pods", settings.claims, settings.own_network)
        if settings.room is not None:
            node.room = asyncio.Semaphore(settings.room)
        self._forks = Forks(self.directory / "forks")
        if settings.forked:
            node.start = self._forks.start
        self._kubelet = Kubelet(self._api, node)
        JobController(self._api, self._loop, settings.backoff, settings.batch)
        self._watches = Watches(store, settings.bookmark)
        parts = (self._api, self._kubelet, admission, self._disturbances, self._watches)
        self._front = Front(*parts, self._token)
        self.faults = Faults(self.run, *parts)
        for name in ("default", "kube-system"):
            self._api.create(NAMESPACES, "", _namespace(name))
        for name in NODE_NAMES:
            store.create(NODES, _node(self._api, name))

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._pair.certificate, self._pair.key)
        context.load_verify_locations(self._authority.pair.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        self._runner = web.ServerRunner(
            web.Server(self._front.handle, handler_cancellation=True), shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]


async def _settle() -> None:
    """End what is left of the loop's tasks, and let transports close."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.sleep(0.05)
    await asyncio.get_running_loop().shutdown_default_executor()


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _namespace(name: str) -> Object:
    return {"metadata": {"name": name}}


def _node(api: Api, name: str) -> Object:
    arch = _ARCHITECTURES.get(platform.machine(), platform.machine())
    labels = {
        "kubernetes.io/arch": arch,
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
    }
    room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    told = ("bootID", "machineID", "systemUUID", "kernelVersion", "osImage", "kubeProxyVersion")
    info = {
        **dict.fromkeys((*told, "containerRuntimeVersion"), "played"),
        "architecture": arch,
        "operatingSystem": "linux",
        "kubeletVersion": f"v1.{api.minor}.0",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": name, "labels": labels},
        "spec": {},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [condition("Ready")],
            "nodeInfo": info,
        },
    }
