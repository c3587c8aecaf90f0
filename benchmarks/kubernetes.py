"""Kubernetes: one call and an array, beside Jobs of the same image that kubectl makes.

Runs on the test cluster of ``tests/clusters/kubernetes``, which it starts and ends (root).
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.run import Case, measurement, seconds

NAMESPACE = "bench"
ELEMENTS = 40
_NUMBERS = itertools.count()


@functools.cache
def _cluster() -> Any:
    """The cluster, with a user of one's own who has it as a target."""
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


def _function() -> Any:
    cluster = _cluster()
    import trivial  # type: ignore[import-not-found]

    import clustrix_containers as cx

    assert cluster
    return cx.function(trivial.work, memory="256MiB", cpus=1)


def _job(reference: str) -> str:
    """A bare Job of the image: the worker in it then runs without a run, and prints the value."""
    container = {
        "name": "main",
        "image": reference,
        "resources": {"limits": {"memory": "256Mi", "cpu": "1"}},
        "securityContext": {"runAsUser": 65532},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "restartPolicy": "Never",
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"bare-{next(_NUMBERS)}", "namespace": NAMESPACE},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }
    return json.dumps(job)


def _bare(reference: str, count: int) -> None:
    """As many Jobs, the ordinary way: kubectl makes each, and waits for each."""
    cluster = _cluster()
    texts = [_job(reference) for _ in range(count)]
    names = [json.loads(text)["metadata"]["name"] for text in texts]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda text: cluster.kubectl("create", "-f", "-", text=text), texts))
    places = [f"job/{name}" for name in names]
    cluster.kubectl("wait", "-n", NAMESPACE, "--for=condition=complete", "--timeout=300s", *places)


def _reference(job: Any) -> str:
    return f"{_cluster().access.registry}/bench/runs@{job.image}"


@measurement("Kubernetes: one trivial call, submit to result", unit="s", runs=7)
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


@measurement(f"Kubernetes 1.20: array of {ELEMENTS}, each a Job", unit="s", runs=3)
def array() -> Iterator[Case]:
    function = _function()
    items = range(ELEMENTS)
    first = function.map(items)
    assert list(first.results(300)) == list(items)
    reference = _reference(first)
    yield Case("`map`", lambda: seconds(lambda: list(function.map(items).results(300))))
    yield Case(
        f"{ELEMENTS} bare Jobs, kubectl", lambda: seconds(lambda: _bare(reference, ELEMENTS))
    )
