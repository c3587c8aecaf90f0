"""``queue:``: a Job is made for Kueue, whose part the tests play: nothing runs before it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import BatchV1Api

import clustrix_containers as cx
from clustrix_containers.api.status import State
from clustrix_containers.clusters.kubernetes.manifest import LABEL_QUEUE, selector
from clustrix_containers.errors import ClusterError
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.kubernetes_server import Server

QUEUE = "team-queue"


@pytest.mark.registry
@pytest.mark.parametrize("count", [1, 3])
def test_it_waits_in_the_queue_until_it_is_resumed(
    played: Server, on_played: Callable[..., str], count: int
) -> None:
    on = on_played(played.kubeconfig(), queue=QUEUE)
    function = cx.function(work.square)
    made: Any = function.map(range(count), on=on) if count > 1 else [function.submit(0, on=on)]
    waits = f"suspended: waits in the queue {QUEUE}"
    assert wait_until(lambda: all(job.status.message == waits for job in made[:]), 60)
    assert {job.status.state for job in made[:]} == {State.PENDING}
    with connected(played.kubeconfig()) as client:
        api = BatchV1Api(client)
        chosen = selector(made[0].run)
        (job,) = api.list_namespaced_job("team", label_selector=chosen).items
        assert job.metadata.labels[LABEL_QUEUE] == QUEUE
        assert job.spec.suspend
        assert not job.status.start_time
        api.patch_namespaced_job(job.metadata.name, "team", {"spec": {"suspend": False}})
    assert [job.result(120) for job in made[:]] == [n * n for n in range(count)]


@pytest.mark.registry
def test_the_doctor_names_the_queue(played: Server, on_played: Callable[..., str]) -> None:
    on_played(played.kubeconfig(), queue=QUEUE)
    assert (
        "queue",
        True,
        f"{QUEUE}: Jobs stay suspended until Kueue resumes them",
    ) in found("k8s")


@pytest.mark.kubernetes
def test_a_server_that_cannot_keep_a_queue_says_so(configure: Callable[..., None]) -> None:
    configure(queue=QUEUE)
    words = rf"the queue {QUEUE} cannot be kept by Kubernetes 1\.\d+: its Jobs cannot be made"
    with pytest.raises(ClusterError, match=words) as caught:
        cx.function(work.square).submit(3, on="k8s")
    assert "Leave queue out" in str(caught.value.hint)
    (finding,) = (it for it in found("k8s") if it[0] == "queue")
    assert not finding[1]
    assert "cannot be made suspended" in finding[2]


def found(on: str) -> list[tuple[str, bool, str]]:
    from clustrix_containers.config import file as config
    from clustrix_containers.runs.destination import open_target

    return list(open_target(config.load().target(on)).check())
