"""Kubernetes: one call and an array, compared with Jobs of the same image that kubectl creates.

Runs on the test cluster of ``tests/clusters/kubernetes``, which it starts and stops (root).
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.run import Case, measurement, seconds

NAMESPACE = "bench"
SHARE = 0.02
"""Cores that an element of an array requests."""
_NUMBERS = itertools.count()


@functools.cache
def _cluster() -> Any:
    """The cluster, with a user of its own who has it as a target."""
    from tests.clusters.kubernetes.cluster import Kubernetes

    home = Path(tempfile.mkdtemp(prefix="clustrix-bench-"))
    cluster = Kubernetes(home / "cluster", with_parent=True)
    atexit.register(cluster.down)
    cluster.up()
    access = cluster.access
    access.make_namespace(NAMESPACE)
    target = {
        "type": "kubernetes",
        "kubeconfig": str(access.kubeconfig),
        "namespace": NAMESPACE,
        "registry": f"{access.registry}/bench/runs",
        "pull_secret": "registry",
    }
    config = home / "clustrix.yml"
    config.write_text(json.dumps({"default": "k8s", "targets": {"k8s": target}}))
    os.environ |= {
        **access.variables(),
        "CLUSTRIX_CONFIG": str(config),
        "CLUSTRIX_DATA_DIR": str(home / "data"),
        "CLUSTRIX_STATE_DIR": str(home / "state"),
    }
    (home / "trivial.py").write_text("def work(x):\n    return x\n")
    sys.path.insert(0, str(home))
    return cluster


def _function(cpus: float = 1) -> Any:
    cluster = _cluster()
    import trivial  # type: ignore[import-not-found]

    import clustrix_containers as cx

    assert cluster
    return cx.function(trivial.work, memory="64MiB", cpus=cpus)


def _job(reference: str, cpus: float, tag: str, number: int) -> dict[str, Any]:
    """A bare Job of the image: without a run, the worker prints the value."""
    container = {
        "name": "main",
        "image": reference,
        "resources": {
            "limits": {"memory": "64Mi", "cpu": "1"},
            "requests": {"cpu": f"{cpus * 1000:.0f}m"},
        },
        "securityContext": {"runAsUser": 65532},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "restartPolicy": "Never",
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{tag}-{number}",
            "namespace": NAMESPACE,
            "labels": {"bench": tag},
        },
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }


def _bare(reference: str, count: int, cpus: float = 1) -> None:
    """``count`` Jobs, the ordinary way: one kubectl creates them, and they are listed until all are done.

    Not ``kubectl wait``: it queries each separately, at most five times a second.
    """
    cluster = _cluster()
    tag = f"bare-{next(_NUMBERS)}"
    jobs = [_job(reference, cpus, tag, number) for number in range(count)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": jobs})
    cluster.kubectl("create", "-f", "-", text=text)
    listing = ("get", "jobs", "-n", NAMESPACE, "-l", f"bench={tag}", "-o", "jsonpath={..succeeded}")
    end = time.monotonic() + 1800
    while len(cluster.kubectl(*listing).split()) < count:
        assert time.monotonic() < end, "the bare Jobs do not end"
        time.sleep(0.05 if count == 1 else 1.0)


def _reference(job: Any) -> str:
    return f"{_cluster().access.registry}/bench/runs@{job.image}"


@measurement("Kubernetes: one trivial call, submit to result", unit="s", runs=21)
def one_call() -> Iterator[Case]:
    function = _function()
    first = function.submit(3)
    assert first.result(120) == 3
    reference = _reference(first)
    yield Case("`submit(x).result()`", lambda: seconds(lambda: function.submit(3).result(120)))
    yield Case(
        "a bare Job of the same image, kubectl", lambda: seconds(lambda: _bare(reference, 1))
    )


@measurement("Kubernetes: the client's part of one call", unit="ms", target=100, runs=7)
def client() -> Iterator[Case]:
    function = _function()
    assert function.submit(3).result(120) == 3

    def submit() -> float:
        jobs: list[Any] = []
        taken = seconds(lambda: jobs.append(function.submit(3)))
        jobs[0].result(120)
        return taken * 1000

    yield Case("`submit(x)`, the image known", submit)


def _array(count: int) -> Iterator[Case]:
    """Elements that all fit at once, so that pods are measured and not the scheduler's backoff."""
    function = _function(SHARE)
    assert list(function.map(range(2)).results(300)) == [0, 1]

    def ours() -> None:
        assert list(function.map(range(count)).results(1800)) == list(range(count))

    reference = _reference(function.submit(0))
    yield Case("`map`", lambda: seconds(ours))
    yield Case(
        f"{count} bare Jobs, one `kubectl create`",
        lambda: seconds(lambda: _bare(reference, count, SHARE)),
    )


@measurement("Kubernetes 1.20: array of 100, each a Job", unit="s", runs=3)
def array() -> Iterator[Case]:
    return _array(100)


@measurement("Kubernetes 1.20: array of 1,000, each a Job", unit="s", runs=1)
def large_array() -> Iterator[Case]:
    return _array(1000)
