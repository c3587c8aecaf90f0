"""The objects in a namespace, read as the cluster's administrator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import Access


@contextlib.contextmanager
def core(access: Access) -> Iterator[Any]:
    from kubernetes.client import CoreV1Api

    with access.client() as client:
        yield CoreV1Api(client)


@contextlib.contextmanager
def batch(access: Access) -> Iterator[Any]:
    from kubernetes.client import BatchV1Api

    with access.client() as client:
        yield BatchV1Api(client)


@contextlib.contextmanager
def scheduling(access: Access) -> Iterator[Any]:
    from kubernetes.client import SchedulingV1Api

    with access.client() as client:
        yield SchedulingV1Api(client)


def of_run(run: str) -> str:
    """The label selector of a run's Jobs and pods."""
    return f"io.clustrix-containers/run={run}"


def pods(access: Access, namespace: str) -> list[Any]:
    with core(access) as api:
        return list(api.list_namespaced_pod(namespace).items)


def jobs(access: Access, namespace: str) -> list[Any]:
    with batch(access) as api:
        return list(api.list_namespaced_job(namespace).items)


def until(condition: Callable[[], object], seconds: float, detail: Callable[[], object]) -> None:
    """Wait for the condition; ``detail`` is what a failure shows."""
    assert wait_until(lambda: bool(condition()), seconds), detail()
