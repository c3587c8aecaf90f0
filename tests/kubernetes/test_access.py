"""The Role of ``k8s/`` is enough, ``doctor`` names what is missing, and a dry run creates nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clustrix_containers as cx
from tests.cases import work
from tests.clusters.kubernetes.access import SECRET
from tests.clusters.kubernetes.cluster import Kubernetes

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).parents[2]


def cxc(home: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clustrix_containers", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout


def applied(cluster: Kubernetes, namespace: str, home: Path) -> None:
    """Apply ``k8s/`` to a namespace of another name."""
    for file in (ROOT / "k8s").glob("*.yaml"):
        text = file.read_text().replace("namespace: clustrix\n", f"namespace: {namespace}\n")
        text = text.replace("name: clustrix\n", f"name: {namespace}\n")
        (home / "k8s").mkdir(exist_ok=True)
        (home / "k8s" / file.name).write_text(text)
    cluster.kubectl("apply", "-k", str(home / "k8s"))


def as_user(
    cluster: Kubernetes, namespace: str, home: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    """This test's target is that of a user in ``group``."""
    kubeconfig = cluster.configuration.write_kubeconfig(
        f"someone-{namespace}", group, namespace=namespace
    )
    for name, value in cluster.access.variables().items():
        monkeypatch.setenv(name, value)
    target = {
        "type": "kubernetes",
        "kubeconfig": str(kubeconfig),
        "registry": f"{cluster.access.registry}/access/runs",
        "pull_secret": SECRET,
    }
    config = home / "clustrix.yml"
    config.write_text(json.dumps({"default": "k8s", "targets": {"k8s": target}}))
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(config))


def test_the_role_is_enough_to_run_to_read_and_to_cancel(
    own_kubernetes: Kubernetes, namespace: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied(own_kubernetes, namespace, home)
    as_user(own_kubernetes, namespace, home, monkeypatch, "clustrix-users")
    assert "NOT" not in cxc(home, "doctor")
    assert cx.function(work.square).submit(3).result(120) == 9
    # Larger than a termination message: taken out of the pod.
    assert len(cx.function(work.big, memory="256MiB").submit(1 << 20).result(120)) == 1 << 17
    job = cx.function(work.wait_for).submit(600)
    assert job.cancel()


def test_doctor_names_each_permission_that_is_missing(
    own_kubernetes: Kubernetes, namespace: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_user(own_kubernetes, namespace, home, monkeypatch, "strangers")
    printed = cxc(home, "doctor", code=1)
    assert f"in {namespace} you may not create, get, list, watch, patch, delete" in printed
    assert "pods/exec: kubectl apply -k k8s/" in printed
    assert "NOT  k8s: dry run" in printed


def test_a_dry_run_prints_what_the_server_takes_and_makes_nothing(
    own_kubernetes: Kubernetes, namespace: str, on: str, home: Path
) -> None:
    printed = cxc(home, "run", "--on", on, "--dry-run", "tests/cases/work.py:square", "3")
    assert printed.startswith("# Kubernetes 1.20: one Job. Results of a few kilobytes")
    assert "kind: Job" in printed
    made = own_kubernetes.kubectl("create", "--dry-run=server", "-f", "-", text=printed)
    assert made.count("created (server dry run)") == 2
    assert own_kubernetes.kubectl("get", "jobs,pods", "-n", namespace) == ""
    assert cxc(home, "ps", "--json").strip() == "[]"
