"""A line to the API server that is cut, stalls or refuses, while a large result is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

import clustrix_containers as cx
from tests.cases import work
from tests.clusters.faults.proxy import Proxy
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import begun
from tests.kubernetes.objects import jobs, pods, until

pytestmark = pytest.mark.kubernetes

SIZE = 1 << 26


def taking(line: Proxy, home: Path) -> cx.Job:
    """A job whose large result is on its way here."""
    line.limit(16 << 20)
    job = cx.function(work.big, memory="1GiB").submit(SIZE, on="k8s")
    until(lambda: begun(job, home), 90, lambda: job.status)
    return job


def until_released(cluster: Kubernetes, namespace: str) -> None:
    """Until the pod holds nothing any more, long before its hold is over."""
    until(
        lambda: [job for job in jobs(cluster.access, namespace) if job.status.succeeded],
        90,
        lambda: pods(cluster.access, namespace),
    )


def test_a_cut_in_the_middle(
    line: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(line, home)
    line.cut()
    line.limit(0)
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


@pytest.mark.test_all
def test_a_stall_in_the_middle(
    line: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(line, home)
    line.stall()
    # What has come so far is thrown away once the stream is given up.
    until(lambda: not begun(job, home), 60, lambda: job.status)
    line.heal()
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


def test_a_pod_hears_that_its_result_was_taken_though_the_word_is_lost(
    line: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(line, home)
    # While the result comes down nothing goes up: the next thing is that word.
    line.cut_after(1)
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


@pytest.mark.test_all
def test_a_pod_hears_that_its_result_was_taken_though_nobody_answers_for_a_while(
    line: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(line, home)
    line.cut_after(1)
    line.refuse()
    assert job.result(30).nbytes == SIZE
    line.heal()
    until_released(own_kubernetes, namespace)
