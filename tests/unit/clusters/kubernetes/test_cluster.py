"""The cluster object: states and outcomes of many elements in one call each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.api.options import Resources
from clustrix_containers.api.status import Cause, State
from clustrix_containers.clusters import kubernetes, open_cluster
from clustrix_containers.clusters.kubernetes import KubernetesCluster
from clustrix_containers.clusters.kubernetes.manifest import CONTAINER
from clustrix_containers.clusters.kubernetes.pods import watch
from clustrix_containers.clusters.task import Fetched, Handle, Task
from clustrix_containers.errors import ClusterError, ResultLost
from tests.bare_worker import KEY, RUN
from tests.delivered import Delivering
from tests.unit.clusters.kubernetes.scripted import Response, api_server, job, pod

MIB = 1 << 20
STORED = 'CXM2{"store": "volume", "mark": "%d.0.0123456789abcdef.mark", "result": null}'


def handles(*elements: int) -> list[Handle]:
    return [Handle(RUN, 0, element, "team") for element in elements]


class Namespace:
    """What the API server of a namespace has: Jobs, pods by name, and which of them was deleted."""

    def __init__(self, **messages: str) -> None:
        made = [pod(RUN, int(name[1:]), message) for name, message in messages.items()]
        self.pods: dict[str, Any] = {it["metadata"]["name"]: it for it in made}
        self.jobs: list[Any] = []
        self.deleted: list[str] = []

    def respond(self, path: str, query: dict[str, str]) -> Response:
        kind, _, name = path.partition("/team/")[2].partition("/")
        if "watch" in query:
            return 500, {"message": "no watches today"}, {}
        if "delete" in query:
            self.deleted.append(name)
            self.pods[name]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        if name:
            return 200, self.pods[name], {}
        items = list(self.pods.values()) if kind == "pods" else self.jobs
        return 200, {"items": items, "metadata": {"resourceVersion": "1"}}, {}


def task(pod: Delivering) -> Task:
    (pod.mine / "key").write_bytes(KEY)
    return Task(RUN, "f", "r/a@sha256:0", range(9), Resources(), pod.mine)


@pytest.fixture
def bare(tmp_path: Path) -> Delivering:
    bare = Delivering.of(tmp_path / "p", sys.executable, "def f(): return 7").configured(None)
    assert bare.bare.run() == (0, "", "")
    return bare


def test_outcomes_come_in_one_call_and_an_error_is_a_value(
    tmp_path: Path, bare: Delivering
) -> None:
    namespace = Namespace(e0=bare.message, e1="CXM3the disk is full", e2="CXM1nonsense")
    with api_server(tmp_path, namespace.respond):
        cluster = KubernetesCluster(kubeconfig=tmp_path / "kubeconfig", namespace="team")
        found = cluster.states(handles(0, 1, 2, 3))
        assert [found[it].state for it in handles(0, 1, 2, 3)] == [
            *[State.SUCCEEDED] * 3,
            State.ABSENT,
        ]
        fetched = cluster.fetch(task(bare), handles(0, 1, 2, 3))
    assert list(fetched) == handles(0, 1, 2, 3)
    assert fetched[handles(0)[0]] == fetched[handles(3)[0]] == Fetched()
    lost, damaged = (fetched[it].error for it in handles(1, 2))
    assert isinstance(lost, ResultLost)
    assert "the disk is full" in str(lost)
    assert "is damaged" in str(damaged)
    assert bare.value() == 7


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_a_pod_that_lives_on_after_its_job_has_failed_is_ended_and_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    namespace = Namespace(e0="")
    (name,) = namespace.pods
    state = {"running": {}} if phase == "Running" else {"waiting": {"reason": "ContainerCreating"}}
    statuses = [{"name": CONTAINER, "state": state}]
    namespace.pods[name]["status"] = {"phase": phase, "containerStatuses": statuses}
    late = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    namespace.jobs = [job(RUN, 0, {"conditions": [late]})]
    monkeypatch.setattr(watch, "QUIET", 0.0)
    monkeypatch.setattr(kubernetes, "ENDING", 0.5)
    (handle,) = handles(0)
    with api_server(tmp_path, namespace.respond):
        cluster = KubernetesCluster(kubeconfig=tmp_path / "kubeconfig", namespace="team", grace=0)
        first = cluster.states([handle])[handle]
        # Its node is gone: it stays as it is.
        found = first
        end = time.monotonic() + 10
        while not found.state.terminal and time.monotonic() < end:
            time.sleep(0.05)
            found = cluster.states([handle])[handle]
    assert first.state is State.RUNNING
    assert (found.state, found.cause) == (State.FAILED, Cause.TIME_LIMIT)
    assert namespace.deleted == [name]


def test_a_disk_here_that_takes_nothing_is_an_error_that_may_pass(
    tmp_path: Path, bare: Delivering
) -> None:
    (bare.mine / "results").write_text("not a directory")
    with api_server(tmp_path, Namespace(e0=bare.message).respond):
        cluster = KubernetesCluster(kubeconfig=tmp_path / "kubeconfig", namespace="team")
        (fetched,) = cluster.fetch(task(bare), handles(0)).values()
    assert isinstance(fetched.error, ClusterError)
    assert fetched.error.temporary
    assert "cannot be stored here" in str(fetched.error)


def test_what_shows_late_on_a_volume_has_a_grace(tmp_path: Path, bare: Delivering) -> None:
    volume = {"volume": {"claim": "c", "mount": str(tmp_path)}}
    with api_server(tmp_path, Namespace(e0=STORED % 0).respond):
        cluster = KubernetesCluster(
            kubeconfig=tmp_path / "kubeconfig", namespace="team", results=volume
        )
        fetched = cluster.fetch(task(bare), handles(0, 1))
    assert [it.grace for it in fetched.values()] == [75.0, 15.0]


def test_a_store_that_is_not_the_targets_is_named(tmp_path: Path, bare: Delivering) -> None:
    with api_server(tmp_path, Namespace(e0=STORED % 0).respond):
        cluster = KubernetesCluster(
            kubeconfig=tmp_path / "kubeconfig", namespace="team", results={"s3": {"bucket": "b"}}
        )
        (fetched,) = cluster.fetch(task(bare), handles(0)).values()
    assert isinstance(fetched.error, ClusterError)
    assert fetched.error.option == "results"
    assert "in a store of kind 'volume'" in str(fetched.error)


def test_there_is_one_cluster_for_a_target_and_it_says_what_it_can(tmp_path: Path) -> None:
    version: Response = (200, {"major": "1", "minor": "20+"}, {})
    with api_server(tmp_path, lambda *_: version) as (_, paths):
        options = {"kubeconfig": str(tmp_path / "kubeconfig"), "namespace": "team"}
        first, second = (open_cluster("kubernetes", options) for _ in range(2))
        assert first is second
        for _ in range(3):
            able = first.capabilities
        assert (able.images, able.retries, able.max_parallel) == ("registry", True, False)
        with pytest.raises(ClusterError, match=r"queue q is not possible on Kubernetes 1\.20"):
            first.check_options({"queue": "q"})
    assert paths == ["/version/"]
