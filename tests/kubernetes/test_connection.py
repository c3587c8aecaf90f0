"""A connection to the API server that is cut, stalls or is refused: large results, and ``cxc ps``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import clustrix_containers as cx
from tests.cases import work
from tests.clusters.faults.proxy import Proxy
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import ROOT, receiving
from tests.kubernetes.objects import jobs, pods, until

pytestmark = pytest.mark.kubernetes

SIZE = 1 << 26


def taking(proxy: Proxy, home: Path) -> cx.Job:
    """A job whose large result is being read."""
    proxy.limit(16 << 20)
    job = cx.function(work.big, memory="1GiB").submit(SIZE, on="k8s")
    until(lambda: receiving(job.run, home), 90, lambda: job.status)
    return job


def until_released(cluster: Kubernetes, namespace: str) -> None:
    """Until the pod is released, long before its hold time is over."""
    until(
        lambda: [job for job in jobs(cluster.access, namespace) if job.status.succeeded],
        90,
        lambda: pods(cluster.access, namespace),
    )


def test_a_cut_in_the_middle(
    proxy: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(proxy, home)
    proxy.cut()
    proxy.limit(0)
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


@pytest.mark.test_all
def test_a_stall_in_the_middle(
    proxy: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(proxy, home)
    proxy.stall()
    # The part that has arrived is deleted when the stream is given up.
    until(lambda: not receiving(job.run, home), 120, lambda: job.status)
    proxy.heal()
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


def test_a_pod_is_released_although_the_first_release_is_lost(
    proxy: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(proxy, home)
    # While the result is read nothing is sent: the next message is the release.
    proxy.cut_after(1)
    assert job.result(120).nbytes == SIZE
    until_released(own_kubernetes, namespace)


@pytest.mark.test_all
def test_a_pod_is_released_although_the_api_server_is_away_for_a_while(
    proxy: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    job = taking(proxy, home)
    proxy.cut_after(1)
    proxy.refuse()
    assert job.result(30).nbytes == SIZE
    proxy.heal()
    until_released(own_kubernetes, namespace)


def ps(home: Path, *words: str) -> tuple[str, float]:
    """What ``cxc ps`` prints, and how many seconds it takes."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "clustrix_containers", "ps", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout, time.monotonic() - started


def rows(home: Path) -> dict[str, Any]:
    return {row["run"]: row for row in json.loads(ps(home, "--json")[0])}


def test_ps_does_not_wait_for_a_cluster_that_is_unreachable(proxy: Proxy, home: Path) -> None:
    over = cx.function(work.square).submit(3, on="k8s")
    assert over.result(90) == 9
    job = cx.function(work.wait_for).submit(1000, on="k8s")
    until(job.running, 90, lambda: job.status)
    # A machine that is busy may take longer than is waited for.
    until(lambda: rows(home)[job.run]["state"] == "running", 60, lambda: ps(home))
    proxy.stall()
    here = cx.function(work.square).submit(4, on="local")
    assert here.result(60) == 16
    found = rows(home)
    assert (found[over.run]["state"], found[here.run]["state"]) == ("succeeded", "succeeded")
    assert (found[job.run]["state"], found[job.run]["seen"]) == ("unknown", {"running": 1})
    assert found[job.run]["seen_at"] > found[job.run]["created"]
    text, seconds = ps(home)
    assert "k8s unreachable (running, seen" in text
    assert seconds < 25
    proxy.refuse()
    proxy.cut()
    assert rows(home)[job.run]["state"] == "unknown"
    proxy.heal()
    until(lambda: rows(home)[job.run]["state"] == "running", 60, lambda: ps(home))
    job.cancel()
