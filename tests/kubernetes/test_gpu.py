"""``gpus=``: an extended resource, which a node of the real cluster is given for the test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import clustrix_containers as cx
from clustrix_containers.api.status import State
from tests.cases import work
from tests.clusters.kubernetes.access import Access
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.objects import core, pods, until

pytestmark = pytest.mark.kubernetes

NODE = "node2"


def amounts(access: Access, resource: str) -> list[str | None]:
    """How much of a resource the node has, and has for pods."""
    with core(access) as api:
        status = api.read_node_status(NODE).status
    return [it.get(resource) for it in (status.capacity, status.allocatable)]


def give(access: Access, resource: str, amount: str | None) -> None:
    change: dict[str, Any] = {
        "status": {name: {resource: amount} for name in ("capacity", "allocatable")}
    }
    with core(access) as api:
        api.patch_node_status(NODE, change)


@contextlib.contextmanager
def one_of(resource: str, access: Access) -> Iterator[None]:
    """The node has one of the resource, and none afterwards."""
    give(access, resource, "1")
    try:
        until(
            lambda: amounts(access, resource) == ["1", "1"],
            60,
            lambda: amounts(access, resource),
        )
        yield
    finally:
        give(access, resource, None)
        # Its kubelet makes the second from the first, now and then.
        until(
            lambda: amounts(access, resource) == [None, None],
            60,
            lambda: amounts(access, resource),
        )


def test_two_that_want_the_only_one_take_turns(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    function = cx.function(work.wait_for, gpus=1)
    access = own_kubernetes.access
    with one_of("nvidia.com/gpu", access):
        first = function.submit(1000, on=on)
        until(first.running, 90, lambda: first.status)
        second = function.submit(0, on=on)
        words = "no node takes it yet: "
        until(
            lambda: (
                words in second.status.message
                and "Insufficient nvidia.com/gpu" in second.status.message
            ),
            60,
            lambda: second.status,
        )
        assert second.status.state is State.PENDING
        first.cancel()
        assert second.result(120) == 0
        assert {it.spec.node_name for it in pods(access, namespace)} == {NODE}


def test_another_name_for_it(
    configure: Callable[..., None], own_kubernetes: Kubernetes, namespace: str
) -> None:
    access = own_kubernetes.access
    configure(gpu_resource="example.org/accelerator")
    with one_of("example.org/accelerator", access):
        assert cx.function(work.square, gpus=1).submit(3, on="k8s").result(120) == 9
        (pod,) = pods(access, namespace)
    assert pod.spec.node_name == NODE
    wanted = pod.spec.containers[0].resources
    assert wanted.limits["example.org/accelerator"] == "1"
    assert wanted.requests["example.org/accelerator"] == "1"
