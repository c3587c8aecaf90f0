"""Arrays as one Indexed Job, on the fake cluster: the real one is older than Indexed Jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import BatchV1Api, CoreV1Api

import clustrix_containers as cx
from clustrix_containers.errors import ResultLost, WorkerDied
from clustrix_containers.runs.attach import attach
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.fake_kubernetes import FakeCluster
from tests.kubernetes.objects import of_run

pytestmark = pytest.mark.registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def on(fake_cluster: FakeCluster, configure_fake: Callable[..., str]) -> str:
    return configure_fake(fake_cluster.kubeconfig(), pull_grace=3)


def request_counts(fake_cluster: FakeCluster) -> Counter[tuple[str, str]]:
    """How often each verb was used on each resource by us."""
    found: Counter[tuple[str, str]] = Counter()
    for request, times in fake_cluster.requests().items():
        found[request.verb, request.resource] += times
    return found


def test_an_array_is_one_job_and_a_handful_of_requests(on: str, fake_cluster: FakeCluster) -> None:
    array = cx.function(work.square).map(range(30), on=on, max_parallel=4)
    assert list(array.results(200)) == [n * n for n in range(30)]
    seen = request_counts(fake_cluster)
    made = {key: seen[key] for key in seen if key[0] in ("create", "patch")}
    assert made == {("create", "jobs"): 1, ("create", "secrets"): 1, ("patch", "jobs"): 1}
    assert seen["watch", "pods"] + seen["watch", "jobs"] == 2
    assert sum(seen.values()) < 12


def test_one_element_that_fails_is_tried_again_and_leaves_the_others(
    on: str, fake_cluster: FakeCluster
) -> None:
    def fails(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number

    array = cx.function(fails, retries=1).map(range(3), on=on)
    assert array[0].result(120) == 0
    assert array[2].result(120) == 2
    with pytest.raises(ValueError, match="one"):
        array[1].result(120)
    assert len(pods(fake_cluster, array.run)) == 4


def test_an_image_that_cannot_be_pulled_ends_the_whole_array_and_its_job(
    on: str, fake_cluster: FakeCluster, no_pulls: threading.Event
) -> None:
    no_pulls.set()
    array = cx.function(work.square).map(range(30), on=on, max_parallel=2)
    assert "one Indexed Job" in array.how
    for job in array.as_completed(120):
        with pytest.raises(WorkerDied, match=r"image cannot be pulled.*: .*pull access denied"):
            job.result(0)
    assert wait_until(lambda: not jobs(fake_cluster, array.run), 60)


def test_a_lost_reply_makes_no_second_job(on: str, fake_cluster: FakeCluster) -> None:
    fake_cluster.faults.lose_reply("create", "jobs")
    assert list(cx.function(work.square).map(range(3), on=on).results(120)) == [0, 1, 4]
    # The second request is answered with 409.
    assert request_counts(fake_cluster)["create", "jobs"] == 2


def test_errors_429_and_500_are_retried(on: str, fake_cluster: FakeCluster) -> None:
    fake_cluster.faults.refuse("create", "jobs", 429, times=2, retry_after=1)
    fake_cluster.faults.refuse("list", "pods", 500, times=2)
    assert cx.function(work.square).submit(3, on=on).result(120) == 9


def test_410_of_a_watch_lists_again(on: str, fake_cluster: FakeCluster) -> None:
    job = cx.function(work.wait_for).submit(3, on=on)
    assert wait_until(lambda: request_counts(fake_cluster)["watch", "pods"] > 0, 60)
    fake_cluster.faults.expire_watches()
    assert job.result(120) == 3
    assert request_counts(fake_cluster)["list", "pods"] >= 2


def test_an_evicted_element_runs_again_and_is_not_charged(
    on: str, fake_cluster: FakeCluster
) -> None:
    job = cx.function(work.wait_for).submit(5, on=on)
    assert wait_until(job.running, 60)
    fake_cluster.faults.evict("team", pods(fake_cluster, job.run)[0])
    assert job.result(120) == 5
    assert len(pods(fake_cluster, job.run)) == 2


def test_403_from_a_server_that_has_just_started_is_retried(
    on: str, fake_cluster: FakeCluster
) -> None:
    def denied(verb: str, resource: str) -> None:
        words = f'{resource} is forbidden: User "me" cannot {verb} resource "{resource}" in API group ""'
        fake_cluster.faults.refuse(verb, resource, 403, times=3, message=words)

    job = cx.function(work.big).submit(1 << 20, on=on)
    assert wait_until(lambda: request_counts(fake_cluster)["watch", "pods"] > 0, 60)
    denied("get", "pods/exec")
    for resource in ("pods", "jobs"):
        for verb in ("list", "watch"):
            denied(verb, resource)
    fake_cluster.faults.cut_watches()
    assert job.result(120).nbytes == 1 << 20
    assert request_counts(fake_cluster)["get", "pods/exec"] > 3


@pytest.mark.parametrize("step", [("create", "secrets"), ("patch", "jobs")])
def test_a_run_whose_client_was_killed_while_it_submitted_is_completed_elsewhere(
    on: str,
    fake_cluster: FakeCluster,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[str, str],
) -> None:
    fake_cluster.faults.cut(*step, times=10_000)
    words = ("run", "--on", on, "tests/cases/work.py:square", "3")
    with subprocess.Popen(
        [sys.executable, "-m", "clustrix_containers", *words], cwd=ROOT
    ) as client:
        assert wait_until(
            lambda: request_counts(fake_cluster)[step] > 0 or client.poll() is not None, 60
        )
        client.kill()
    fake_cluster.faults.clear()
    (run,) = open_record().runs()
    mine = os.environ["CLUSTRIX_STATE_DIR"]
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(home / "elsewhere"))
    session = attach(run.id, on=on, watch=False)
    session.trust()
    session.watch()
    assert session.jobs[0].result(60) == 9
    # The submitting user's record has another key, and adopts that of the pods.
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", mine)
    assert cx.attach(run.id).result(60) == 9
    assert len(jobs(fake_cluster, run.id)) == 1


def test_a_success_whose_pod_was_collected_is_lost(on: str, fake_cluster: FakeCluster) -> None:
    words = ("run", "--on", on, "--detach", "tests/cases/work.py:square", "3")
    done = subprocess.run(
        [sys.executable, "-m", "clustrix_containers", *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    run = done.stdout.strip()

    def complete() -> bool:
        status = jobs(fake_cluster, run)[0]["status"]
        return any(it["type"] == "Complete" for it in status.get("conditions", ()))

    assert wait_until(complete, 60)
    assert (
        fake_cluster.faults.collect_pods("team", jobs(fake_cluster, run)[0]["metadata"]["name"])
        == 1
    )
    with pytest.raises(ResultLost, match="its result is not there"):
        cx.attach(run).result(60)


def pods(fake_cluster: FakeCluster, run: str) -> list[str]:
    """The pods of a run, by name."""
    with connected(fake_cluster.kubeconfig()) as client:
        listed = CoreV1Api(client).list_namespaced_pod("team", label_selector=of_run(run))
        return [it.metadata.name for it in listed.items]


def jobs(fake_cluster: FakeCluster, run: str) -> list[Any]:
    with connected(fake_cluster.kubeconfig()) as client:
        listed = BatchV1Api(client).list_namespaced_job("team", label_selector=of_run(run))
        return [client.sanitize_for_serialization(it) for it in listed.items]
