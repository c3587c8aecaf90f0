"""The status of an element by its Job, its pods and the cluster's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.kubernetes.pods.status import Events, status_of
from clustrix_containers.clusters.kubernetes.pods.views import JobView, PodView
from clustrix_containers.worker.contract import CANCELLED_MESSAGE
from tests.unit.clusters.kubernetes.scripted import Response, api_server

JOB = JobView("r", 0, 0, "j1", "r-0", 1, False, False)
POD = PodView("r", 0, 0, "p1", "r-0-x", "node1", "Running", 1.0, started=True)
DELETED = replace(POD, deleted=True, phase="Failed", exit_code=137, reason="Error")
BACKOFF = replace(
    POD, started=False, phase="Pending", reason="ImagePullBackOff", detail="Back-off pulling"
)


class Cluster:
    """The status of an element, and the events that its cluster has, by reason."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.queries: list[str] = []
        self.events: Events | None = None

    def respond(self, _path: str, query: dict[str, str]) -> Response:
        fields = dict(part.split("=") for part in query["fieldSelector"].split(","))
        self.queries.append(fields["reason"])
        about = {"Job": {"uid": JOB.uid}, "Pod": {"name": POD.name}}
        message = self.messages.get(fields["reason"])
        events = [{"involvedObject": about[fields["involvedObject.kind"]], "message": message}]
        return 200, {"items": events if message else []}, {}

    def status(
        self,
        job: JobView | None,
        *pods: PodView,
        patient: bool = True,
        slow: bool = False,
    ) -> Status:
        assert self.events is not None
        return status_of(job, pods, 0, self.events, patient=patient, slow=slow)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster()
    with api_server(tmp_path, cluster.respond) as (api, _):
        cluster.events = Events(api)
        yield cluster


def test_neither_job_nor_pod_is_absent_and_not_failed(cluster: Cluster) -> None:
    status = cluster.status(None)
    assert (status.state, status.cause) == (State.ABSENT, Cause.DELETED)
    assert status.message == "its Job was deleted, and not by this client"


@pytest.mark.parametrize(
    ("change", "state", "cause", "message"),
    [
        ({}, State.RUNNING, Cause.NONE, "on the node node1"),
        ({"exit_code": 0}, State.SUCCEEDED, Cause.NONE, ""),
        ({"ready": True}, State.SUCCEEDED, Cause.NONE, "its result waits in the pod"),
        ({"message": CANCELLED_MESSAGE}, State.CANCELLED, Cause.NONE, "cancelled"),
        ({"exit_code": 1}, State.RUNNING, Cause.NONE, "its container has ended"),
        ({"exit_code": 1, "phase": "Failed"}, State.FAILED, Cause.DIED, "ended with code 1"),
        ({"exit_code": 137, "phase": "Failed"}, State.FAILED, Cause.DIED, "ended with signal 9"),
        (
            {"exit_code": 137, "phase": "Failed", "reason": "OOMKilled", "memory": "1Gi"},
            State.FAILED,
            Cause.MEMORY_LIMIT,
            "limit of 1Gi",
        ),
    ],
)
def test_a_pod_of_a_job_without_retries(
    cluster: Cluster, change: dict[str, object], state: State, cause: Cause, message: str
) -> None:
    job = replace(JOB, condition="Failed", reason="BackoffLimitExceeded")
    pod = replace(POD, **change)  # type: ignore[arg-type]
    status = cluster.status(job if state is State.FAILED else JOB, pod)
    assert (status.state, status.cause) == (state, cause)
    assert message in status.message
    assert cluster.queries == []


@pytest.mark.parametrize(
    ("messages", "cause", "message"),
    [
        ({}, Cause.EVICTED, "its pod was deleted while it ran on the node node1"),
        ({"Preempted": "by other"}, Cause.PREEMPTED, "was preempted: by other"),
        ({"TaintManagerEviction": "x"}, Cause.NODE_LOST, "its node node1 was lost, or tainted"),
    ],
)
def test_events_explain_a_deletion_and_decide_its_cause(
    cluster: Cluster, messages: dict[str, str], cause: Cause, message: str
) -> None:
    cluster.messages = messages
    failed = replace(JOB, condition="Failed", reason="BackoffLimitExceeded")
    status = cluster.status(failed, DELETED)
    assert status == Status(State.FAILED, cause, 137, message)
    again = cluster.status(JOB, DELETED, replace(POD, uid="p2", created=2.0))
    assert again.message == f"on the node node1 (again: {message})"
    assert cluster.status(JOB, DELETED).message == f"{message}; it runs again"
    # Listed once, for all elements and polls.
    assert len(cluster.queries) == len(set(cluster.queries))


def test_with_its_job_gone_a_deleted_pod_needs_no_explanation(cluster: Cluster) -> None:
    for job in (None, replace(JOB, deleted=True)):
        status = cluster.status(job, DELETED)
        assert (status.state, status.cause, status.exit_code) == (State.FAILED, Cause.DELETED, 137)
    assert cluster.queries == []


def test_an_image_that_cannot_be_pulled_has_the_registrys_message(cluster: Cluster) -> None:
    cluster.messages = {"Failed": "401 Unauthorized"}
    message = "its image cannot be pulled: 401 Unauthorized"
    assert cluster.status(JOB, BACKOFF) == Status(State.PENDING, message=message)
    status = cluster.status(JOB, BACKOFF, patient=False)
    assert status == Status(State.FAILED, Cause.REFUSED, None, message)


def test_a_job_without_pods_is_explained_once_it_takes_long(cluster: Cluster) -> None:
    cluster.messages = {"FailedCreate": "exceeded quota: small"}
    assert cluster.status(JOB) == Status(State.PENDING)
    assert cluster.queries == []
    assert cluster.status(JOB, slow=True).message == "exceeded quota: small"
    queued = replace(JOB, suspended=True, queue="q")
    assert cluster.status(queued, slow=True).message == "suspended: waits in the queue q"


def test_where_events_may_not_be_read_the_state_is_the_same(tmp_path: Path) -> None:
    denied: Callable[..., Response] = lambda *_: (403, {"message": "no"}, {})  # noqa: E731
    with api_server(tmp_path, denied) as (api, paths):
        for _ in range(3):
            status = status_of(JOB, [BACKOFF], 0, Events(api), patient=True, slow=False)
            assert status.message == (
                "its image cannot be pulled (ImagePullBackOff): Back-off pulling"
            )
    assert len(paths) == 3
