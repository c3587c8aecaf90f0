"""Kubernetes: what a large array costs its client, compared with the official client and a Job per element.

Runs on the fake Kubernetes 1.36 of ``tests/fake_kubernetes``, in a process of its own. It runs
the real worker of each element, but forks it from one that has been imported: no containers. The
time that elements take there says nothing about a real cluster; the client's part is the same.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import Case, measurement

NAMESPACE = "team"
LARGE, SMALL = 10_000, 1_000
"""Elements of our array; Jobs of the ordinary client, which takes too long for more."""
EVERY = 1.0
"""Seconds between two queries of the ordinary client for a Job."""


@dataclass(frozen=True)
class Cost:
    """What one run costs its client: seconds, bytes, and how many requests of each verb."""

    submitting: float
    processor: float
    memory: float
    requests: Mapping[str, int]
    received: int


@functools.cache
def _server() -> Any:
    """The fake cluster, with a user of its own who has it as a target."""
    from tests.clusters.registry.cluster import Registries
    from tests.fake_kubernetes.process import cluster_process

    home = Path(tempfile.mkdtemp(prefix="clustrix-bench-"))
    # Runs last: what is registered later runs first.
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "CLUSTRIX_CONFIG": str(home / "clustrix.yml"),
        "CLUSTRIX_DATA_DIR": str(home / "data"),
        "CLUSTRIX_STATE_DIR": str(home / "state"),
    }
    registries = Registries(home / "registries", with_parent=True)
    registries.up()
    atexit.register(registries.down)
    stack = contextlib.ExitStack()
    server = stack.enter_context(cluster_process(home / "cluster"))
    atexit.register(stack.close)
    target = {
        "type": "kubernetes",
        "kubeconfig": str(server.kubeconfig),
        "namespace": NAMESPACE,
        "registry": f"{registries.open.address}/bench/runs",
    }
    (home / "clustrix.yml").write_text(json.dumps({"default": "k8s", "targets": {"k8s": target}}))
    (home / "trivial.py").write_text("def work(x):\n    return x\n")
    sys.path.insert(0, str(home))
    return server


def _resident() -> int:
    """Bytes of this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The most memory that this process has had in a block, over what it had before."""

    def __enter__(self) -> _Peak:
        gc.collect()
        self._before = self._most = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._most - self._before

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self._most = max(self._most, _resident())


def _measured(submit: Callable[[], Callable[[], None]]) -> Cost:
    """The cost of ``submit`` and of what it returns, which waits for the end."""
    server = _server()
    server.forget_requests()
    before = sum(server.counts()[1].values())
    processor, began = time.process_time(), time.perf_counter()
    with _Peak() as peak:
        wait = submit()
        submitting = time.perf_counter() - began
        wait()
    processor = time.process_time() - processor
    requests, sent = server.counts()
    verbs: dict[str, int] = {}
    for request, times in requests.items():
        verbs[request.verb] = verbs.get(request.verb, 0) + times
    received = sum(sent.values()) - before
    return Cost(submitting, processor, peak.bytes, verbs, received)


def _function() -> Any:
    _server()
    import trivial  # type: ignore[import-not-found]

    import clustrix_containers as cx

    return cx.function(trivial.work)


@functools.cache
def _ours() -> Cost:
    function = _function()
    # The image's part that all calls share is built and pushed, and the watches run.
    first = function.map(range(2))
    assert list(first.results(300)) == [0, 1]

    def submit() -> Callable[[], None]:
        array = function.map(range(LARGE))

        def wait() -> None:
            assert list(array.results(3600)) == list(range(LARGE))

        return wait

    return _measured(submit)


@functools.cache
def _theirs() -> Cost:
    """A Job per element, and each Job queried once a second until it has ended."""
    from kubernetes.client import BatchV1Api
    from kubernetes.config import new_client_from_config

    function = _function()
    reference = _reference(function.map(range(2)))
    client: Any = new_client_from_config(str(_server().kubeconfig))
    api = BatchV1Api(client)

    def submit() -> Callable[[], None]:
        names = [f"ordinary-{number}" for number in range(SMALL)]
        for name in names:
            api.create_namespaced_job(NAMESPACE, _job(name, reference))

        def wait() -> None:
            waiting = names
            while waiting:
                began = time.monotonic()
                waiting = [
                    name
                    for name in waiting
                    if not api.read_namespaced_job(name, NAMESPACE).status.succeeded
                ]
                time.sleep(max(0.0, EVERY - (time.monotonic() - began)))

        return wait

    cost = _measured(submit)
    client.close()
    return cost


def _reference(array: Any) -> tuple[str, str]:
    """The image of a run, and the Secret with its key: what the fake nodes can run."""
    from kubernetes.client import CoreV1Api
    from kubernetes.config import new_client_from_config

    from clustrix_containers.clusters.kubernetes.manifest import selector

    assert list(array.results(300)) == [0, 1]
    client: Any = new_client_from_config(str(_server().kubeconfig))
    chosen = selector(array.run)
    pod = CoreV1Api(client).list_namespaced_pod(NAMESPACE, label_selector=chosen).items[0]
    client.close()
    return pod.spec.containers[0].image, array.run


def _job(name: str, reference: tuple[str, str]) -> dict[str, Any]:
    image, run = reference
    places = {"run": "/opt/clustrix/run", "results": "/opt/clustrix/results"}
    container = {
        "name": "main",
        "image": image,
        "env": [{"name": "CLUSTRIX_RUN", "value": run}],
        "volumeMounts": [{"name": it, "mountPath": place} for it, place in places.items()],
    }
    volumes = [
        {"name": "run", "secret": {"secretName": run}},
        {"name": "results", "emptyDir": {}},
    ]
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }


OURS = f"`map` of {LARGE:,}"
THEIRS = f"official client, {SMALL:,} Jobs, each polled every {EVERY:g} s"


def _cases(value: Callable[[Cost, int], float]) -> Iterator[Case]:
    yield Case(OURS, lambda: value(_ours(), LARGE))
    yield Case(THEIRS, lambda: value(_theirs(), SMALL))


FAKE = "Kubernetes (fake, workers forked), array"


@measurement(f"{FAKE}: submitting", unit="s", runs=1)
def submitting() -> Iterator[Case]:
    return _cases(lambda cost, _: cost.submitting)


@measurement(f"{FAKE}: the client's processor time per element", unit="ms", runs=1)
def processor() -> Iterator[Case]:
    return _cases(lambda cost, count: cost.processor / count * 1000)


@measurement(f"{FAKE}: the client's memory per element, at most", unit="KiB", runs=1)
def memory() -> Iterator[Case]:
    return _cases(lambda cost, count: cost.memory / count / 1024)


@measurement(f"{FAKE}: requests", unit="", runs=1, target=12)
def requests() -> Iterator[Case]:
    for subject, measured in ((OURS, _ours), (THEIRS, _theirs)):
        asked = measured().requests
        verbs = ", ".join(f"{times:,} {verb}" for verb, times in sorted(asked.items()))
        yield Case(f"{subject} ({verbs})", functools.partial(sum, asked.values()))


@measurement(f"{FAKE}: bytes to the client per element", unit="KiB", runs=1)
def received() -> Iterator[Case]:
    return _cases(lambda cost, count: cost.received / count / 1024)
