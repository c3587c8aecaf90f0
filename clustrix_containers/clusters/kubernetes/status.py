"""What Jobs and pods say about an element: compact views of them, and one Status."""

from __future__ import annotations

import functools
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.worker.contract import GIVEN_UP

from .manifest import (
    CONTAINER,
    INDEX,
    LABEL_ATTEMPT,
    LABEL_ELEMENT,
    LABEL_QUEUE,
    LABEL_RUN,
    NOTE_COUNT,
)

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_LOST_REASONS = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity")
JOB_DELETED = "its Job was deleted, and not by this client"
_REJECTED = ("OutOf", "UnexpectedAdmissionError", "Preempting")


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod. Times are seconds since the epoch; ``element`` is ``None`` for none of ours.

    ``message`` is the termination message of its container.
    """

    run: str
    attempt: int
    element: int | None
    uid: str
    name: str
    node: str
    phase: str
    created: float
    ready: bool = False
    """Whether it holds a result for whoever takes it."""
    deleted: bool = False
    gone: bool = False
    """Whether it is not there any more: this is how it was last seen."""
    started: bool = False
    exit_code: int | None = None
    signal: int | None = None
    message: str | None = None
    trimmed: bool = False
    """Whether its message is not kept here (any more): the pod itself has it."""
    reason: str = ""
    """Why its container, else the pod, ended or waits."""
    detail: str = ""
    pod_reason: str = ""
    disruption: str = ""
    memory: str = ""
    """Its memory limit, as the API writes it."""

    @property
    def final(self) -> bool:
        """Whether nothing more will be said of it."""
        return self.phase in ("Succeeded", "Failed") or self.deleted or self.gone

    @property
    def ended(self) -> bool:
        over = self.phase in ("Succeeded", "Failed") or self.exit_code is not None
        return over or self.gone

    @property
    def stuck(self) -> bool:
        """Whether its node cannot start it, and tries again."""
        return not self.started and self.reason in _IMAGE_REASONS + _CONFIG_REASONS

    @property
    def cut_off(self) -> bool:
        """Whether it was deleted while it ran, and not ended by anything else."""
        by_hand = not self.pod_reason and not self.disruption and self.reason != "OOMKilled"
        return self.deleted and by_hand and self.exit_code in (None, 137, 143)


@dataclass(frozen=True, slots=True)
class JobView:
    """One Job; ``element`` is ``None`` for an Indexed Job of ``count`` elements."""

    run: str
    attempt: int
    element: int | None
    uid: str
    name: str
    count: int
    indexed: bool
    suspended: bool
    condition: str = ""
    """``Complete`` or ``Failed`` when it has ended."""
    reason: str = ""
    detail: str = ""
    completed: str = ""
    failed: str = ""
    retries: int = 0
    deleted: bool = False
    queue: str = ""
    """Kueue's queue that says when it may run."""
    active: int = 0
    heard: float = field(default=0.0, compare=False)
    """When this was first heard (monotonic)."""

    def counted(self, later: JobView) -> bool:
        """Whether ``later`` differs only in how many elements have come how far."""
        told = replace(self, completed=later.completed, failed=later.failed, active=later.active)
        return told == later


def view_pod(pod: Mapping[str, Any]) -> PodView:
    """The view of a pod as the API gives it."""
    metadata, status, container = pod["metadata"], pod.get("status", {}), _container(pod)
    labels = metadata.get("labels", {})
    element = labels.get(LABEL_ELEMENT, labels.get(INDEX))
    if element is None:
        element = metadata.get("annotations", {}).get(INDEX)
    conditions = {it["type"]: it for it in status.get("conditions", ())}
    disruption = conditions.get("DisruptionTarget", {})
    view = PodView(
        run=_same(labels.get(LABEL_RUN, "")),
        attempt=int(labels.get(LABEL_ATTEMPT, "0")),
        element=int(element) if element is not None else 0,
        uid=metadata["uid"],
        name=metadata["name"],
        node=_same(pod.get("spec", {}).get("nodeName", "")),
        phase=_same(status.get("phase", "Pending")),
        created=seconds(metadata.get("creationTimestamp")),
        # One that does not hold results is Ready as soon as it runs.
        ready="readinessProbe" in container and conditions.get("Ready", {}).get("status") == "True",
        deleted="deletionTimestamp" in metadata,
        pod_reason=status.get("reason", ""),
        detail=status.get("message", ""),
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        memory=_same(container.get("resources", {}).get("limits", {}).get("memory", "")),
    )
    containers = [it for it in status.get("containerStatuses", ()) if it["name"] == CONTAINER]
    if containers:
        return _with_container(view, containers[0].get("state", {}))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return replace(view, reason="Unschedulable", detail=scheduled.get("message", ""))
    return view


def _same(text: str) -> str:
    """One string for all pods that say the same."""
    return sys.intern(str(text))


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    found = [it for it in pod.get("spec", {}).get("containers", ()) if it["name"] == CONTAINER]
    return found[0] if found else {}


def _with_container(view: PodView, state: Mapping[str, Any]) -> PodView:
    if ended := state.get("terminated"):
        return replace(
            view,
            started=True,
            exit_code=ended["exitCode"],
            signal=ended.get("signal"),
            reason=_same(ended.get("reason", "")),
            message=ended.get("message"),
        )
    if waiting := state.get("waiting"):
        detail = waiting.get("message", "") or view.detail
        return replace(view, reason=waiting.get("reason", ""), detail=detail)
    return replace(view, started="running" in state)


def view_job(job: Mapping[str, Any]) -> JobView:
    """The view of a Job as the API gives it."""
    metadata, spec, status = job["metadata"], job["spec"], job.get("status", {})
    labels = metadata.get("labels", {})
    element = labels.get(LABEL_ELEMENT)
    final: Mapping[str, str] = next(
        (
            it
            for it in status.get("conditions", ())
            if it["type"] in ("Complete", "Failed") and it["status"] == "True"
        ),
        {},
    )
    indexed = spec.get("completionMode") == "Indexed"
    return JobView(
        run=labels.get(LABEL_RUN, ""),
        attempt=int(labels.get(LABEL_ATTEMPT, "0")),
        element=int(element) if element is not None else (None if indexed else 0),
        uid=metadata["uid"],
        name=metadata["name"],
        count=int(metadata.get("annotations", {}).get(NOTE_COUNT, "1")),
        indexed=indexed,
        suspended=bool(spec.get("suspend")),
        condition=final.get("type", ""),
        reason=final.get("reason", ""),
        detail=final.get("message", ""),
        completed=status.get("completedIndexes", ""),
        failed=status.get("failedIndexes", ""),
        queue=labels.get(LABEL_QUEUE, ""),
        active=int(status.get("active", 0)),
        retries=int(
            spec.get("backoffLimitPerIndex", 0 if indexed else spec.get("backoffLimit", 0))
        ),
        deleted="deletionTimestamp" in metadata,
    )


def within(indexes: str, index: int) -> bool:
    """Whether an index is in ``"1,3-5,7"``, as a Job's status writes them."""
    firsts, lasts = _ranges(indexes)
    place = bisect_right(firsts, index) - 1
    return place >= 0 and index <= lasts[place]


@functools.lru_cache(16)
def _ranges(indexes: str) -> tuple[Sequence[int], Sequence[int]]:
    """The first and the last index of each part, which are in ascending order."""
    parts = [part.partition("-") for part in indexes.split(",") if part]
    firsts = [int(first) for first, _, _ in parts]
    return firsts, [int(last or first) for first, _, last in parts]


def news(before: JobView, later: JobView) -> set[int]:
    """The elements of whose end a Job tells for the first time, and some that it has told of."""
    found: set[int] = set()
    for old, new in ((before.completed, later.completed), (before.failed, later.failed)):
        if old != new:
            for part in set(new.split(",")) - set(old.split(",")):
                first, _, last = part.partition("-")
                found.update(range(int(first), int(last or first) + 1) if part else ())
    return found


def newest(pods: Sequence[PodView]) -> PodView | None:
    """The pod that counts: one that lives, else the last."""
    return max(
        pods, key=lambda pod: (not pod.deleted, not pod.ended, pod.created, pod.uid), default=None
    )


def judge(
    job: JobView | None, pods: Sequence[PodView], element: int, *, patient: bool
) -> Status | None:
    """How an element is; ``None`` if nothing is known of it: no Job, no pod.

    ``patient`` says whether a pod that is stuck has still time to start.
    """
    for pod in pods:
        if pod.message == GIVEN_UP:
            return Status(State.CANCELLED, message="cancelled")
        if pod.exit_code == 0 or (pod.phase == "Succeeded" and pod.exit_code is None):
            return Status(State.SUCCEEDED, exit_code=0)
        if pod.ready and not pod.deleted:
            return Status(State.SUCCEEDED, message="its result waits in the pod")
    last = newest(pods)
    if job is not None and within(job.completed, element):
        return Status(State.SUCCEEDED, exit_code=0)
    if last is None:
        return _without_pod(job, element)
    ended = [pod for pod in pods if pod.ended]
    if last.exit_code and not last.final:
        # Whether it was evicted, its pod says a moment later.
        return Status(State.RUNNING, message="its container has ended")
    if last.ended:
        return _ended(job, last, element, len(ended))
    again = _again([pod for pod in pods if pod is not last and (pod.ended or pod.deleted)])
    if last.started:
        return Status(State.RUNNING, message=f"on the node {last.node}{again}")
    before = newest(ended)
    if job is not None and job.condition == "Failed":
        # What was to replace a pod was given up with the Job: that pod's end tells why.
        return _job_failed(job) if before is None else _ended(job, before, element, len(ended))
    status = _waiting(last, patient)
    return replace(status, message=f"{status.message}{again}")


def _again(before: Sequence[PodView]) -> str:
    """Why an element has another pod than its first."""
    last = newest(before)
    return "" if last is None else f" (again: {_why(last).message})"


def _without_pod(job: JobView | None, element: int) -> Status | None:
    if job is None:
        return None
    if job.condition == "Complete":
        return Status(State.SUCCEEDED, exit_code=0)
    if job.condition == "Failed" or within(job.failed, element):
        status = _job_failed(job)
        if status.cause is Cause.TIME_LIMIT:
            return status
        return replace(status, message=f"{status.message}; no pod is left that says why")
    if job.suspended and job.queue:
        return Status(State.PENDING, message=f"suspended: waits in the queue {job.queue}")
    return Status(State.PENDING, message="suspended" if job.suspended else "")


def _job_failed(job: JobView) -> Status:
    cause = Cause.TIME_LIMIT if job.reason == "DeadlineExceeded" else Cause.DIED
    text = f"the Job {job.name} failed: {job.reason}: {job.detail}".rstrip(": ")
    return Status(State.FAILED, cause, None, text)


def _ended(job: JobView | None, pod: PodView, element: int, ended: int) -> Status:
    status = _why(pod)
    if job is None or job.deleted:
        if pod.cut_off:
            return Status(State.FAILED, Cause.DELETED, pod.exit_code, JOB_DELETED)
        return status
    if job.reason == "DeadlineExceeded":
        return _job_failed(job)
    if job.condition == "Failed" or within(job.failed, element):
        return status
    if status.cause.infrastructure or pod.deleted:
        # The Job's controller makes another pod; if it does not, the Job fails.
        return Status(State.PENDING, message=f"{status.message}; it runs again")
    if ended <= job.retries:
        return Status(State.PENDING, message=f"{status.message}; it is tried again")
    return status


def deletion(pod: PodView) -> str:
    """That a pod was cut off, where it does not say by what."""
    return f"its pod was deleted while it ran on the node {pod.node}"


def _why(pod: PodView) -> Status:
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
        cause, text = Cause.EVICTED, deletion(pod)
    elif pod.exit_code is not None:
        how = f"signal {pod.exit_code - 128}" if pod.exit_code > 128 else f"code {pod.exit_code}"
        text = f"its container ended with {how}"
        if pod.reason not in ("", "Error", "Completed"):
            text += f" ({pod.reason}{': ' + (pod.message or '') if pod.message else ''})"
    else:
        text = f"its pod failed: {pod.pod_reason} {pod.detail}".rstrip()
    return Status(State.FAILED, cause, pod.exit_code, text.rstrip(": "))


def _waiting(pod: PodView, patient: bool) -> Status:
    if pod.reason == "Unschedulable":
        return Status(State.PENDING, message=f"no node takes it yet: {pod.detail}")
    if pod.stuck:
        what = "its image cannot be pulled" if pod.reason in _IMAGE_REASONS else "cannot start"
        text = f"{what} ({pod.reason}): {pod.detail}"
        if not patient:
            return Status(State.FAILED, Cause.REFUSED, None, text)
        return Status(State.PENDING, message=text)
    return Status(State.PENDING, message=pod.reason)


def seconds(stamp: str | None) -> float:
    """Seconds since the epoch of a time as the API writes it (RFC 3339)."""
    if not stamp:
        return 0.0
    from datetime import datetime

    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
