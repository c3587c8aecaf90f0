"""What a target's options make of its pods, on real nodes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import clustrix_containers as cx
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.objects import pods

pytestmark = pytest.mark.kubernetes

Configure = Callable[..., None]


@pytest.mark.parametrize("size", [10, 100_000])
def test_any_user_that_the_cluster_forces(configure: Configure, size: int) -> None:
    """As OpenShift does it: a uid of the namespace's own, and its group is root's."""

    def who() -> tuple[int, int, bytes]:
        with open("/tmp/file", "w") as file:  # noqa: PTH123
            file.write("mine")
        return os.getuid(), os.getgid(), os.urandom(size)

    forced = {"runAsUser": 1_000_650_000, "runAsGroup": 0, "fsGroup": 1_000_650_000}
    configure(user="any", pod_template={"spec": {"securityContext": forced}})
    uid, gid, data = cx.function(who).submit(on="k8s").result(120)
    assert (uid, gid, len(data)) == (1_000_650_000, 0, size)


def test_where_pods_may_go_and_what_is_merged_over_them(
    configure: Configure, own_kubernetes: Kubernetes, namespace: str
) -> None:
    def variable() -> str | None:
        return os.environ.get("GIVEN")

    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node2"]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    configure(
        tolerations=[{"key": "only", "operator": "Equal", "value": "us", "effect": "NoSchedule"}],
        affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        pod_template={
            "metadata": {"annotations": {"example.org/cost-centre": '7 "ü"\n'}},
            "spec": {
                "containers": [{"name": "main", "env": [{"name": "GIVEN", "value": "$(so) $$"}]}]
            },
        },
    )
    own_kubernetes.kubectl("taint", "node", "node2", "only=us:NoSchedule")
    try:
        assert cx.function(variable).submit(on="k8s").result(120) == "$(so) $"
    finally:
        own_kubernetes.kubectl("taint", "node", "node2", "only-")
    (pod,) = pods(own_kubernetes.access, namespace)
    assert pod.spec.node_name == "node2"
    assert pod.metadata.annotations["example.org/cost-centre"] == '7 "ü"\n'
    # What is ours stays: the overlay is merged, not put in its place.
    assert {it.name for it in pod.spec.containers[0].volume_mounts} >= {"run", "tmp"}
