"""``queue:``: a Job is made suspended for Kueue; the tests resume it in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import BatchV1Api

import clustrix_containers as cx
from clustrix_containers.api.status import State
from clustrix_containers.errors import ClusterError
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.fake_kubernetes import FakeCluster
from tests.kubernetes.objects import of_run
from tests.kubernetes.test_access import cxc

QUEUE = "team-queue"


@pytest.mark.registry
@pytest.mark.parametrize("count", [1, 3])
def test_it_waits_in_the_queue_until_it_is_resumed(
    fake_cluster: FakeCluster, configure_fake: Callable[..., str], count: int
) -> None:
    on = configure_fake(fake_cluster.kubeconfig(), queue=QUEUE)
    function = cx.function(work.square)
    made: Any = function.map(range(count), on=on) if count > 1 else [function.submit(0, on=on)]
    waits = f"suspended: waits in the queue {QUEUE}"
    assert wait_until(lambda: all(job.status.message == waits for job in made[:]), 60)
    assert {job.status.state for job in made[:]} == {State.PENDING}
    with connected(fake_cluster.kubeconfig()) as client:
        api = BatchV1Api(client)
        chosen = of_run(made[0].run)
        (job,) = api.list_namespaced_job("team", label_selector=chosen).items
        assert job.metadata.labels["kueue.x-k8s.io/queue-name"] == QUEUE
        assert job.spec.suspend
        assert not job.status.start_time
        api.patch_namespaced_job(job.metadata.name, "team", {"spec": {"suspend": False}})
    assert [job.result(120) for job in made[:]] == [n * n for n in range(count)]


@pytest.mark.registry
def test_the_doctor_names_the_queue(
    fake_cluster: FakeCluster, configure_fake: Callable[..., str], home: Path
) -> None:
    on = configure_fake(fake_cluster.kubeconfig(), queue=QUEUE)
    printed = cxc(home, "doctor", "--on", on)
    assert f"ok   k8s: queue: {QUEUE}: Jobs stay suspended until Kueue resumes them" in printed


@pytest.mark.kubernetes
def test_a_server_without_suspended_jobs_cannot_have_a_queue(
    configure: Callable[..., None], home: Path
) -> None:
    configure(queue=QUEUE)
    with pytest.raises(ClusterError, match=rf"queue {QUEUE} .*Kubernetes 1\.\d+") as caught:
        cx.function(work.square).submit(3, on="k8s")
    assert "queue" in str(caught.value.hint)
    printed = cxc(home, "doctor", "--on", "k8s", code=1)
    (line,) = (it for it in printed.splitlines() if it.startswith("NOT  k8s: queue: "))
    assert "suspended" in line
