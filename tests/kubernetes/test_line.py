"""A line to the API server that is cut, stalls or refuses: large results, and ``cxc ps``."""

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
from tests.kubernetes.conftest import ROOT, begun
from tests.kubernetes.objects import jobs, pods, until

pytestmark = pytest.mark.kubernetes

SIZE = 1 << 26


def taking(line: Proxy, home: Path) -> cx.Job:
    """A job whose large result is on its way here."""
    line.limit(16 << 20)
    job = cx.function(work.big, memory="1GiB").submit(SIZE, on="k8s")
    until(lambda: begun(job.run, home), 90, lambda: job.status)
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
    until(lambda: not begun(job.run, home), 120, lambda: job.status)
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


def ps(home: Path, *words: str) -> tuple[str, float]:
    """What ``cxc ps`` prints, and how many seconds it takes."""
    begun = time.monotonic()
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
    return done.stdout, time.monotonic() - begun


def rows(home: Path) -> dict[str, Any]:
    return {row["run"]: row for row in json.loads(ps(home, "--json")[0])}


def test_ps_does_not_wait_for_a_target_that_is_away(line: Proxy, home: Path) -> None:
    over = cx.function(work.square).submit(3, on="k8s")
    assert over.result(90) == 9
    job = cx.function(work.wait_for).submit(1000, on="k8s")
    until(job.running, 90, lambda: job.status)
    # A machine that is busy may take longer than is waited for.
    until(lambda: rows(home)[job.run]["state"] == "running", 60, lambda: ps(home))
    line.stall()
    here = cx.function(work.square).submit(4, on="local")
    assert here.result(60) == 16
    found = rows(home)
    assert (found[over.run]["state"], found[here.run]["state"]) == ("succeeded", "succeeded")
    assert (found[job.run]["state"], found[job.run]["seen"]) == ("unknown", {"running": 1})
    assert found[job.run]["seen_at"] > found[job.run]["created"]
    text, seconds = ps(home)
    assert "k8s out of reach since" in text
    assert "(running then)" in text
    assert seconds < 25
    line.refuse()
    line.cut()
    assert rows(home)[job.run]["state"] == "unknown"
    line.heal()
    until(lambda: rows(home)[job.run]["state"] == "running", 60, lambda: ps(home))
    job.cancel()
