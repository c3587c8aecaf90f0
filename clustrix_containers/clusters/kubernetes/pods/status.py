"""How an element is, by its Job, its pods and, where these do not explain it, the cluster's events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.kubernetes.api import PAGE, Api
from clustrix_containers.errors import ClusterError
from clustrix_containers.worker.contract import CANCELLED_MESSAGE

from .views import IMAGE_REASONS, JobView, PodView, newest, within

_LOST_REASONS = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity")
_REJECTED = ("OutOf", "UnexpectedAdmissionError", "Preempting")
_NO_CAUSE = ("", "Error: ErrImagePull", "Error: ImagePullBackOff")
"""What a kubelet reports in the same second as the registry's message."""
REFRESH = 15.0
"""Seconds for which events are used that were listed before."""

DELETED = Status(State.FAILED, Cause.DELETED, None, "its Job was deleted, and not by this client")
ABSENT = replace(DELETED, state=State.ABSENT)


REFUSED = ("Job", "FailedCreate")
"""Kind and reason of events about why a Job has no pods."""
_PULL_FAILED = ("Pod", "Failed")
_PREEMPTED = ("Pod", "Preempted")
_TAINTED = ("Pod", "TaintManagerEviction")
"""A node's taint has ended a pod, for example because the node is lost."""


class Events:
    """What explains the state of Jobs and pods that do not do so themselves.

    Those of a kind and reason are listed all at once.
    https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._listed: dict[tuple[str, str], float] = {}
        self._messages: dict[tuple[str, str], dict[str, str]] = {}

    def last(self, what: tuple[str, str], uid: str, name: str) -> str:
        """The last message about an object; ``""`` if there is none, or none may be read."""
        with self._lock:
            listed = self._listed.get(what)
            if listed is None or time.monotonic() - listed > REFRESH:
                # They only explain: without them the state is the same.
                with contextlib.suppress(ClusterError):
                    self._messages[what] = self._list(*what)
                self._listed[what] = time.monotonic()
            messages = self._messages.get(what, {})
            # Some controllers give no uid.
            return messages.get(uid) or messages.get(name) or ""

    def _list(self, kind: str, reason: str) -> dict[str, str]:
        api, selector = self._api, f"involvedObject.kind={kind},reason={reason}"
        events = api.function("list", "event")
        chosen: dict[str, Any] = {"field_selector": selector, "limit": PAGE}
        listed = api.call("list events", events, api.namespace, **chosen)["items"]
        return {
            event["involvedObject"].get("uid") or event["involvedObject"].get("name", ""): message
            for event in sorted(listed, key=lambda it: it.get("lastTimestamp") or "")
            if (message := event.get("message", "")) not in _NO_CAUSE
        }


def status_of(
    job: JobView | None,
    pods: Sequence[PodView],
    element: int,
    events: Events,
    *,
    patient: bool,
    slow: bool,
) -> Status:
    """How an element is; :data:`ABSENT` if there is neither a Job nor a pod.

    ``patient`` says whether a pod that is stuck has still time to start, ``slow`` whether the Job
    has been without pods for so long that the reason is of interest.
    """
    for pod in pods:
        if pod.message == CANCELLED_MESSAGE:
            return Status(State.CANCELLED, message="cancelled")
        if pod.exit_code == 0 or (pod.phase == "Succeeded" and pod.exit_code is None):
            return Status(State.SUCCEEDED, exit_code=0)
        if pod.ready and not pod.deleted:
            return Status(State.SUCCEEDED, message="its result waits in the pod")
    last = newest(pods)
    if job is not None and within(job.completed, element):
        return Status(State.SUCCEEDED, exit_code=0)
    if last is None:
        return ABSENT if job is None else _without_pod(job, element, events, slow)
    ended = [pod for pod in pods if pod.ended]
    if last.exit_code and not last.final:
        # Whether it was evicted, its pod shows a moment later.
        return Status(State.RUNNING, message="its container has ended")
    if last.ended:
        return _ended(job, last, element, len(ended), events)
    if last.deleted and (job is None or job.deleted):
        return DELETED
    if job is not None and job.condition == "Failed":
        # What was to replace a pod was given up with the Job: that pod's end is the reason.
        before = newest(ended)
        return (
            _job_failed(job) if before is None else _ended(job, before, element, len(ended), events)
        )
    replaced = newest([pod for pod in pods if pod is not last and (pod.ended or pod.deleted)])
    again = "" if replaced is None else f" (again: {_failure(replaced, events).message})"
    if last.started:
        return Status(State.RUNNING, message=f"on the node {last.node}{again}")
    status = _waiting(last, events, patient)
    return replace(status, message=f"{status.message}{again}")


def _without_pod(job: JobView, element: int, events: Events, slow: bool) -> Status:
    if job.condition == "Complete":
        return Status(State.SUCCEEDED, exit_code=0)
    if job.condition == "Failed" or within(job.failed, element):
        status = _job_failed(job)
        if status.cause is Cause.TIME_LIMIT:
            return status
        return replace(status, message=f"{status.message}; no pod is left that explains it")
    if job.suspended:
        waits = f": waits in the queue {job.queue}" if job.queue else ""
        return Status(State.PENDING, message=f"suspended{waits}")
    return Status(State.PENDING, message=events.last(REFUSED, job.uid, job.name) if slow else "")


def _job_failed(job: JobView) -> Status:
    cause = Cause.TIME_LIMIT if job.reason == "DeadlineExceeded" else Cause.DIED
    text = f"the Job {job.name} failed: {job.reason}: {job.detail}".rstrip(": ")
    return Status(State.FAILED, cause, None, text)


def _ended(job: JobView | None, pod: PodView, element: int, ended: int, events: Events) -> Status:
    if job is None or job.deleted:
        return replace(DELETED, exit_code=pod.exit_code) if pod.cut_off else _failure(pod, events)
    if job.reason == "DeadlineExceeded":
        return _job_failed(job)
    status = _failure(pod, events)
    if job.condition == "Failed" or within(job.failed, element):
        return status
    if status.cause.infrastructure or pod.deleted:
        # The Job's controller makes another pod; if it does not, the Job fails.
        return Status(State.PENDING, message=f"{status.message}; it runs again")
    if ended <= job.retries:
        return Status(State.PENDING, message=f"{status.message}; it is retried")
    return status


def _failure(pod: PodView, events: Events) -> Status:
    """Why a pod did not succeed, in one sentence."""
    cause, text = Cause.DIED, ""
    if pod.reason == "OOMKilled":
        text = f"used more memory than its limit of {pod.memory} and was ended (OOMKilled)"
        cause = Cause.MEMORY_LIMIT
    elif pod.pod_reason == "DeadlineExceeded":
        cause, text = Cause.TIME_LIMIT, f"its pod was ended at its deadline: {pod.detail}"
    elif pod.disruption == "PreemptionByScheduler" or pod.pod_reason == "Preempting":
        cause, text = Cause.PREEMPTED, "was preempted by a pod of higher priority"
    elif pod.disruption in ("DeletionByTaintManager", "DeletionByPodGC"):
        cause, text = Cause.NODE_LOST, f"its node {pod.node} was lost"
    elif pod.pod_reason == "Evicted" or pod.disruption:
        cause, text = Cause.EVICTED, f"was evicted from the node {pod.node}: {pod.detail}"
    elif pod.pod_reason in _LOST_REASONS:
        cause, text = Cause.NODE_LOST, f"its node {pod.node} was lost: {pod.pod_reason}"
    elif pod.pod_reason.startswith(_REJECTED):
        cause, text = Cause.EVICTED, f"the node {pod.node} refused it: {pod.detail}"
    elif pod.cut_off:
        cause, text = _deletion(pod, events)
    elif pod.exit_code is not None:
        how = f"signal {pod.exit_code - 128}" if pod.exit_code > 128 else f"code {pod.exit_code}"
        text = f"its container ended with {how}"
        if pod.reason not in ("", "Error", "Completed"):
            text += f" ({pod.reason}{': ' + (pod.message or '') if pod.message else ''})"
    else:
        text = f"its pod failed: {pod.pod_reason} {pod.detail}".rstrip()
    return Status(State.FAILED, cause, pod.exit_code, text.rstrip(": "))


def _deletion(pod: PodView, events: Events) -> tuple[Cause, str]:
    """Why a pod was deleted while it ran: before 1.26 only events show it."""
    if message := events.last(_PREEMPTED, pod.uid, pod.name):
        return Cause.PREEMPTED, f"was preempted: {message}"
    if events.last(_TAINTED, pod.uid, pod.name):
        return Cause.NODE_LOST, f"its node {pod.node} was lost, or tainted"
    return Cause.EVICTED, f"its pod was deleted while it ran on the node {pod.node}"


def _waiting(pod: PodView, events: Events, patient: bool) -> Status:
    if pod.reason == "Unschedulable":
        return Status(State.PENDING, message=f"no node takes it yet: {pod.detail}")
    if not pod.stuck:
        return Status(State.PENDING, message=pod.reason)
    what = "its image cannot be pulled" if pod.reason in IMAGE_REASONS else "cannot start"
    text = f"{what} ({pod.reason}): {pod.detail}"
    if pod.reason == "ImagePullBackOff" and (
        message := events.last(_PULL_FAILED, pod.uid, pod.name)
    ):
        text = f"{what}: {message}"
    if patient:
        return Status(State.PENDING, message=text)
    return Status(State.FAILED, Cause.REFUSED, None, text)
