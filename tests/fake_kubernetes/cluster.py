"""The fake cluster: a thread with everything in it, TLS in front, and a kubeconfig for clients."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import secrets
import shutil
import ssl
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from tests.clusters.certificates import Authority
from tests.fake_kubernetes.api import Api
from tests.fake_kubernetes.faults import Faults, Request, Requests
from tests.fake_kubernetes.forked import Forks
from tests.fake_kubernetes.http import Handler
from tests.fake_kubernetes.images import Pull
from tests.fake_kubernetes.jobs import JobController
from tests.fake_kubernetes.kubelet import NODE_NAMES, Kubelet, Node
from tests.fake_kubernetes.objects import NAMESPACES, NODES, Object, condition
from tests.fake_kubernetes.schema import VERSION
from tests.fake_kubernetes.store import Store
from tests.fake_kubernetes.watch import Watches

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How the cluster is. Times are in seconds."""

    history: int = 100_000
    """Changes that a watch can go back."""

    bookmark: float = 2
    backoff: float = 0.1
    """Before a failed pod is made again, doubled with each failure (really: 10)."""

    capacity: int | None = None
    """How many pods run at once; None: any number."""

    forked: bool = False
    """Containers are forks of one process with the image's worker: for thousands of them."""

    batch: float = 0.01
    """In which the Job controller gathers what has changed (really: 1)."""


class FakeCluster:
    """One API server on 127.0.0.1, the Job controller and two nodes, in one thread.

    ``directory`` holds its keys and its pods' files. Use it in a ``with`` statement.
    """

    def __init__(self, directory: Path, pull: Pull, settings: Settings | None = None) -> None:
        self.directory = directory
        self.faults: Faults
        self._settings = settings or Settings()
        self._pull = pull
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kubernetes", daemon=True
        )
        self._problems: list[str] = []
        self._loop.set_exception_handler(self._note)
        self._requests = Requests()

    def __enter__(self) -> FakeCluster:
        """It answers when this returns."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._authority = Authority(self.directory / "keys")
        self._authority.make()
        self._thread.start()
        self._run(self._assemble)
        self._await(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        """End it, with every container; AssertionError if anything in it failed unexpectedly."""
        self._run(self._cut_connections)
        self._await(self._runner.cleanup())
        self._await(self._kubelet.stop(), 600)
        self._await(self._forks.stop())
        self._await(_settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.directory / "pods", ignore_errors=True)
        assert not self._problems, "\n".join(self._problems)

    def kubeconfig(self, namespace: str = "default") -> Path:
        """A kubeconfig (mode 0600) with a client certificate."""
        pair = self._authority.sign("client", user="tester")
        authority = _encoded(self._authority.pair.certificate)
        cluster = {"server": f"https://127.0.0.1:{self._port}"}
        user = {
            "client-certificate-data": _encoded(pair.certificate),
            "client-key-data": _encoded(pair.key),
        }
        context = {"cluster": "test", "user": "tester", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {**cluster, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "tester", "user": user}],
            "contexts": [{"name": "test", "context": context}],
        }
        path = self.directory / f"{secrets.token_hex(4)}.kubeconfig"
        path.touch(0o600)
        # JSON is YAML.
        path.write_text(json.dumps(config, indent=1))
        return path

    def requests(self) -> Counter[Request]:
        """How often each verb, resource and user agent was asked for."""
        return self._run(lambda: Counter(self._requests.made))

    def sent(self) -> Counter[str]:
        """Bytes of the bodies of responses, by verb."""
        return self._run(lambda: Counter({**self._requests.sent, "watch": self._watches.sent}))

    def forget_requests(self) -> None:
        """Count requests from now on."""
        self._run(self._requests.made.clear)

    def make_namespace(self, name: str) -> None:
        self._run(lambda: self._api.create(NAMESPACES, "", {"metadata": {"name": name}}))

    def _run(self, function: Callable[[], T]) -> T:
        """Call a function in the cluster's thread."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return done.result(60)

    def _await(self, coroutine: asyncio._CoroutineLike[T], seconds: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)  # type: ignore[arg-type]

    def _note(self, loop: asyncio.AbstractEventLoop, about: Mapping[str, Any]) -> None:
        error = about.get("exception")
        lines = traceback.format_exception(error) if isinstance(error, BaseException) else []
        self._problems.append(f"{about['message']}\n{''.join(lines)}")

    def _assemble(self) -> None:
        settings, store = self._settings, Store(self._settings.history)
        self._api = Api(store, self._loop)
        self._forks = Forks(self.directory / "forks")
        node = Node(self._pull, self.directory / "pods")
        if settings.capacity is not None:
            node.capacity = asyncio.Semaphore(settings.capacity)
        if settings.forked:
            node.start = self._forks.start
        self._kubelet = Kubelet(self._api, node)
        JobController(self._api, self._loop, settings.backoff, settings.batch)
        self._watches = Watches(store, settings.bookmark)
        parts = (self._api, self._kubelet, self._requests, self._watches)
        self._handler = Handler(*parts)
        self.faults = Faults(self._run, *parts)
        self._api.create(NAMESPACES, "", {"metadata": {"name": "default"}})
        for name in NODE_NAMES:
            store.create(NODES, _node(name))

    async def _listen(self) -> None:
        pair = self._authority.sign("server")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        context.load_verify_locations(self._authority.pair.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = web.Server(self._handler.handle, handler_cancellation=True)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self._port: int = self._runner.addresses[0][1]

    def _cut_connections(self) -> None:
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()


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


def _node(name: str) -> Object:
    versions = ("bootID", "machineID", "systemUUID", "kernelVersion", "osImage", "kubeProxyVersion")
    info = {
        **dict.fromkeys((*versions, "containerRuntimeVersion"), "fake"),
        "architecture": "amd64",
        "operatingSystem": "linux",
        "kubeletVersion": f"v{VERSION}.0",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": name},
        "status": {"conditions": [condition("Ready")], "nodeInfo": info},
    }
