"""A user with a target ``k8s``: in a namespace of this test's own, on the real cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clusters.kubernetes.access import SECRET, Access
from tests.contract.conftest import cache as cache
from tests.contract.conftest import home as home
from tests.contract.targets import kubernetes_variables


@pytest.fixture
def lines(kubernetes: Access, namespace: str) -> dict[str, object]:
    """The target's lines: a test may change them before it asks for ``k8s``."""
    return {
        "type": "kubernetes",
        "kubeconfig": str(kubernetes.kubeconfig),
        "namespace": namespace,
        "registry": f"{kubernetes.registry}/tests/runs",
        "pull_secret": SECRET,
    }


@pytest.fixture
def k8s(
    lines: dict[str, object], kubernetes: Access, home: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The target's name, which is the default of the test's own ``clustrix.yml``."""
    for name, value in kubernetes_variables(kubernetes).items():
        monkeypatch.setenv(name, value)
    config = home / "clustrix.yml"
    config.write_text(json.dumps({"default": "k8s", "targets": {"k8s": lines}}))
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(config))
    return "k8s"
