"""What an array costs its client: the same requests whatever its size, and no memory for events."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.client import CoreV1Api

import clustrix_containers as cx
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.fake_kubernetes.process import ClusterProcess, cluster_process
from tests.kubernetes.objects import of_run

pytestmark = pytest.mark.registry

AN_ARRAY = {("create", "jobs"): 1, ("create", "secrets"): 1, ("patch", "jobs"): 1}


@pytest.fixture
def cluster(tmp_path: Path, home: Path) -> Iterator[ClusterProcess]:
    """In a process of its own, where the workers of an array's elements are forked."""
    assert home
    with cluster_process(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def on(cluster: ClusterProcess, configure_fake: Callable[..., str]) -> str:
    return configure_fake(cluster.kubeconfig)


def run_array(count: int, on: str) -> str:
    """An array's run id, when all of it has ended well."""
    array = cx.function(work.square).map(range(count), on=on)
    assert list(array.results(600)) == [n * n for n in range(count)]
    return array.run


def request_counts(cluster: ClusterProcess) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for request, times in cluster.counts()[0].items():
        if request.agent == "clustrix-containers":
            found[request.verb, request.resource] += times
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.test_all)])
def test_an_array_of_any_size_makes_the_same_requests(
    on: str, cluster: ClusterProcess, count: int
) -> None:
    run_array(2, on)
    first = request_counts(cluster)
    assert first == AN_ARRAY | {
        ("get", "version"): 1,
        ("list", "pods"): 1,
        ("list", "jobs"): 1,
        ("watch", "pods"): 1,
        ("watch", "jobs"): 1,
    }
    for size in (20, count):
        cluster.forget_requests()
        run_array(size, on)
        seen = request_counts(cluster)
        # A watch ends after minutes, and begins again where it was.
        del seen["watch", "pods"], seen["watch", "jobs"]
        # They are listed now and then while a Job has no pods: a busy machine is slow to make them.
        del seen["list", "events"]
        assert seen == AN_ARRAY, size


def test_events_take_no_memory(on: str, cluster: ClusterProcess) -> None:
    run = run_array(60, on)
    change_all_pods(cluster, run, on, 1)
    tracemalloc.start()
    try:
        before = traced()
        change_all_pods(cluster, run, on, 10)
        grown = traced() - before
    finally:
        tracemalloc.stop()
    # Six hundred events were 3 MB of JSON; the call made since has its image and its Future.
    assert grown < 500_000


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def change_all_pods(cluster: ClusterProcess, run: str, on: str, times: int) -> None:
    """Change each pod of a run ``times`` times; when this returns, the client has seen all of it."""
    with connected(cluster.kubeconfig) as client:
        api = CoreV1Api(client)
        pods = api.list_namespaced_pod("team", label_selector=of_run(run)).items
        for number in range(times):
            for pod in pods:
                change = {"metadata": {"annotations": {"changed": str(number)}}}
                api.patch_namespaced_pod(pod.metadata.name, "team", change)
    # Events come in the order in which they happened.
    assert cx.function(work.square).submit(3, on=on).result(120) == 9


def test_a_whole_array_is_cancelled_by_one_deletion(on: str, cluster: ClusterProcess) -> None:
    array = cx.function(work.wait_for).map([1000] * 100, on=on)
    assert wait_until(lambda: any(job.running() for job in array[:]), 120)
    cluster.forget_requests()
    assert array.cancel() == 100
    assert request_counts(cluster) == {("list", "jobs"): 1, ("deletecollection", "jobs"): 1}
    assert array.done()
    with connected(cluster.kubeconfig) as client:
        api = CoreV1Api(client)
        assert wait_until(lambda: not api.list_namespaced_pod("team").items, 120)
