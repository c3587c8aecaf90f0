"""One cancelled element of an Indexed Job: the others go on, and it is never run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import BatchV1Api, CoreV1Api

import clustrix_containers as cx
from clustrix_containers.worker.contract import CANCELLED_MESSAGE
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.fake_kubernetes import FakeCluster
from tests.fake_kubernetes.objects import INDEX
from tests.kubernetes.objects import of_run

pytestmark = pytest.mark.registry


def objects(cluster: FakeCluster, run: str) -> tuple[Any, list[Any]]:
    """A run's Job and its pods."""
    with connected(cluster.kubeconfig()) as client:
        chosen = {"namespace": "team", "label_selector": of_run(run)}
        (job,) = BatchV1Api(client).list_namespaced_job(**chosen).items
        return job, CoreV1Api(client).list_namespaced_pod(**chosen).items


def ended(cluster: FakeCluster, run: str) -> bool:
    conditions = objects(cluster, run)[0].status.conditions or ()
    return any(it.type in ("Complete", "Failed") and it.status == "True" for it in conditions)


def messages(cluster: FakeCluster, run: str, index: int) -> list[str | None]:
    """The termination messages of an index's pods."""
    return [
        state.terminated.message
        for pod in objects(cluster, run)[1]
        if pod.metadata.annotations[INDEX] == str(index)
        for state in (it.state for it in pod.status.container_statuses)
        if state.terminated
    ]


def test_one_that_runs_is_not_tried_again(
    fake_cluster: FakeCluster,
    configure_fake: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    on = configure_fake(fake_cluster.kubeconfig())
    array = cx.function(work.wait_for, retries=2).map([3, 1000, 3], on=on)
    assert wait_until(array[1].running, 120)
    assert array[1].cancel()
    assert array[0].result(120) == 3
    assert array[2].result(120) == 3
    # The Job controller has started the index once more: it does not know of the cancellation.
    assert wait_until(lambda: ended(fake_cluster, array.run), 120)
    assert messages(fake_cluster, array.run, 1) == [CANCELLED_MESSAGE]
    # Another user's record shows the same.
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "elsewhere"))
    again = cx.attach(array.run, on=on)
    assert isinstance(again, cx.JobArray)
    assert again.wait(60)
    assert [job.cancelled() for job in again[:]] == [False, True, False]


def test_one_that_waits_for_its_turn_never_begins(
    fake_cluster: FakeCluster, configure_fake: Callable[..., str]
) -> None:
    on = configure_fake(fake_cluster.kubeconfig())
    array = cx.function(work.wait_for).map([3, 1000, 0], on=on, max_parallel=1)
    assert wait_until(array[0].running, 120)
    assert array[1].cancel()
    assert array[0].result(120) == 3
    assert array[2].result(120) == 0
    assert wait_until(lambda: ended(fake_cluster, array.run), 120)
    job, _ = objects(fake_cluster, array.run)
    assert job.status.completed_indexes == "0-2"
    assert messages(fake_cluster, array.run, 1) == [CANCELLED_MESSAGE]


def test_the_rest_of_an_array_goes_at_once_and_what_is_here_stays(
    fake_cluster: FakeCluster, configure_fake: Callable[..., str]
) -> None:
    on = configure_fake(fake_cluster.kubeconfig())
    array = cx.function(work.wait_for).map([0, 1000, 1000, 1000], on=on, max_parallel=1)
    assert array[0].result(120) == 0
    assert wait_until(array[1].running, 120)
    assert array.cancel() == 3
    with connected(fake_cluster.kubeconfig()) as client:
        batch, core = BatchV1Api(client), CoreV1Api(client)
        assert wait_until(lambda: not batch.list_namespaced_job("team").items, 120)
        assert wait_until(lambda: not core.list_namespaced_pod("team").items, 120)
    assert array[0].result(1) == 0
    assert [job.cancelled() for job in array[:]] == [False, True, True, True]
