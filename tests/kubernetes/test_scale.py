"""What an array costs its client: as many requests as one of any size, and no memory for events."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.client import CoreV1Api

import clustrix_containers as cx
from clustrix_containers.clusters.kubernetes.manifest import selector
from clustrix_containers.clusters.kubernetes.status import PodView
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.kubernetes_server.alone import Alone, alone

pytestmark = pytest.mark.registry

AN_ARRAY = {("create", "jobs"): 1, ("create", "secrets"): 1, ("patch", "jobs"): 1}


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Alone]:
    """In a process of its own, where the workers of an array's elements are forked."""
    assert home
    with alone(tmp_path / "server") as server:
        yield server


@pytest.fixture
def on(server: Alone, on_played: Callable[..., str]) -> str:
    return on_played(server.kubeconfig)


def run_array(count: int, on: str) -> str:
    """An array's run id, when all of it has ended well."""
    array = cx.function(work.square).map(range(count), on=on)
    assert list(array.results(600)) == [n * n for n in range(count)]
    return array.run


def asked(server: Alone) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for request, times in server.counts()[0].items():
        if request.agent == "clustrix-containers":
            found[request.verb, request.resource] += times
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.test_all)])
def test_an_array_of_any_size_makes_the_same_requests(on: str, server: Alone, count: int) -> None:
    run_array(2, on)
    first = asked(server)
    assert first == AN_ARRAY | {
        ("get", "version"): 1,
        ("list", "pods"): 1,
        ("list", "jobs"): 1,
        ("watch", "pods"): 1,
        ("watch", "jobs"): 1,
    }
    for size in (20, count):
        server.forget()
        run_array(size, on)
        seen = asked(server)
        # A watch ends after minutes, and begins again where it was.
        del seen["watch", "pods"], seen["watch", "jobs"]
        assert seen == AN_ARRAY, size


def test_events_take_no_memory(on: str, server: Alone) -> None:
    run = run_array(60, on)
    change_all_pods(server, run, on, 1)
    known = [it for it in gc.get_objects() if isinstance(it, PodView) and it.run == run]
    assert len(known) == 60
    # What an element's worker has said is on disk.
    assert [it.message for it in known] == [None] * 60
    del known
    tracemalloc.start()
    try:
        before = traced()
        change_all_pods(server, run, on, 10)
        grown = traced() - before
    finally:
        tracemalloc.stop()
    # Six hundred events were 3 MB of JSON; the call made since has its image and its Future.
    assert grown < 500_000
    assert sum(isinstance(it, PodView) and it.run == run for it in gc.get_objects()) == 60


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def change_all_pods(server: Alone, run: str, on: str, times: int) -> None:
    """Change each pod of a run so often; when this returns, the client has heard of it."""
    with connected(server.kubeconfig) as client:
        api = CoreV1Api(client)
        pods = api.list_namespaced_pod("team", label_selector=selector(run)).items
        for number in range(times):
            for pod in pods:
                change = {"metadata": {"annotations": {"changed": str(number)}}}
                api.patch_namespaced_pod(pod.metadata.name, "team", change)
    # What is heard of comes in the order in which it happened.
    assert cx.function(work.square).submit(3, on=on).result(120) == 9


def test_a_whole_array_is_cancelled_by_one_deletion(on: str, server: Alone) -> None:
    array = cx.function(work.wait_for).map([1000] * 100, on=on)
    assert wait_until(lambda: any(job.running() for job in array[:]), 120)
    server.forget()
    assert array.cancel() == 100
    assert asked(server) == {("list", "jobs"): 1, ("deletecollection", "jobs"): 1}
    assert array.done()
    with connected(server.kubeconfig) as client:
        api = CoreV1Api(client)
        assert wait_until(lambda: not api.list_namespaced_pod("team").items, 120)
