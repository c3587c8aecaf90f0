"""The Job controller: makes pods for a Job, counts how they ended, and publishes its status.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fake_kubernetes.api import Api, job_labels
from tests.fake_kubernetes.objects import (
    INDEX,
    JOBS,
    PODS,
    Object,
    condition,
    ended,
    has_condition,
    now,
    set_condition,
    terminating,
)
from tests.fake_kubernetes.store import Change, Key

FINALIZER = "batch.kubernetes.io/job-tracking"
_MANY = 1 << 31
_AT_ONCE = 50
"""Pods that are made before others get their turn (really: 500)."""


@dataclass
class Tally:
    """What the controller remembers of a Job. A Job that is not Indexed has the index 0."""

    pods: set[Key] = field(default_factory=set)
    """Those that are not counted yet, or not gone yet."""

    completed: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    failures: dict[int, int] = field(default_factory=dict)
    """By index; failures that ``podFailurePolicy`` ignores are not among them."""

    not_before: dict[int, float] = field(default_factory=dict)
    """By index: the loop's time before which no new pod is made."""

    failure: tuple[str, str] | None = None
    """Reason and message with which the Job fails."""


class JobController:
    """``backoff``: seconds before a failed pod is made again, doubled with each failure.

    ``batch``: seconds for which it gathers changes of pods before it looks at their Job.
    """

    def __init__(
        self, api: Api, loop: asyncio.AbstractEventLoop, backoff: float, batch: float
    ) -> None:
        self._api = api
        self._store = api.store
        self._loop = loop
        self._backoff = backoff
        self._batch = batch
        self._tallies: dict[str, Tally] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._store.listen(self._changed)

    def _changed(self, change: Change) -> None:
        key = self._store.key(change.resource, change.item)
        if change.resource == JOBS and change.kind == "DELETED":
            # Pods of a Job that is gone are not held for counting.
            tally = self._tallies.pop(change.item["metadata"]["uid"], Tally())
            for pod in tally.pods:
                self._loop.call_soon(self._store.remove_finalizer, pod, FINALIZER)
        elif change.resource == JOBS:
            self._enqueue(key)
        elif change.resource == PODS:
            (owner,) = change.item["metadata"].get("ownerReferences", [{"uid": ""}])
            if known := self._tallies.get(owner["uid"]):
                if change.kind == "DELETED":
                    known.pods.discard(key)
                self._enqueue((JOBS, key[1], owner["name"]), self._batch)

    def _enqueue(self, key: Key, seconds: float = 0.01) -> None:
        """Look at a Job after this time; what changes until then is seen with it."""
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= self._loop.time() + seconds:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = self._loop.call_later(seconds, self._sync, key)

    def _sync(self, key: Key) -> None:
        self._timers.pop(key, None)
        job = self._store.find(*key)
        if job is None:
            return
        tally = self._tallies.setdefault(job["metadata"]["uid"], Tally())
        self._count(job, tally)
        if has_condition(job, "Complete") or has_condition(job, "Failed"):
            return
        spec = job["spec"]
        pods = [it for it in (self._store.find(*pod) for pod in tally.pods) if it and not ended(it)]
        active = [it for it in pods if not terminating(it)]
        leaving = [it for it in pods if terminating(it)]
        tally.failure = tally.failure or _failure(spec, tally)
        done = tally.failure is None and len(tally.completed) == spec["completions"]
        if tally.failure or done or spec["suspend"]:
            for pod in active:
                self._api.delete(self._store.key(PODS, pod), "Background")
            leaving, active = [*leaving, *active], []
        elif "startTime" in job["status"]:
            active += self._make_pods(key, job, tally, active, leaving)
        self._publish(key, tally, active, leaving, done)

    # -- counting

    def _count(self, job: Object, tally: Tally) -> None:
        """Count every pod that has ended, once: then it may be deleted."""
        replaces_ended_only = job["spec"]["podReplacementPolicy"] == "Failed"
        for key in sorted(tally.pods, key=lambda it: it[2]):
            pod = self._store.find(*key)
            if pod is None:
                tally.pods.discard(key)
                continue
            over = ended(pod) or (terminating(pod) and not replaces_ended_only)
            if over and FINALIZER in pod["metadata"].get("finalizers", ()):
                self._count_pod(job, tally, pod)
                self._store.remove_finalizer(key, FINALIZER)
            if ended(pod):
                tally.pods.discard(key)

    def _count_pod(self, job: Object, tally: Tally, pod: Object) -> None:
        index = index_of(pod)
        if pod["status"]["phase"] == "Succeeded":
            tally.completed.add(index)
        elif not job["spec"]["suspend"] and not _ignored(job["spec"], pod):
            count = tally.failures[index] = tally.failures.get(index, 0) + 1
            pause = min(self._backoff * 2 ** (count - 1), 60 * self._backoff)
            tally.not_before[index] = self._loop.time() + pause
            if count > job["spec"].get("backoffLimitPerIndex", count):
                tally.failed_indexes.add(index)

    # -- making pods

    def _make_pods(
        self, key: Key, job: Object, tally: Tally, active: list[Object], leaving: list[Object]
    ) -> list[Object]:
        """Make the pods that are missing; those that were made."""
        spec = job["spec"]
        busy = [*active, *(leaving if spec["podReplacementPolicy"] == "Failed" else ())]
        missing = spec["parallelism"] - len(busy)
        taken = {index_of(it) for it in busy} | tally.completed | tally.failed_indexes
        made: list[Object] = []
        for index in range(spec["completions"]):
            if index in taken:
                continue
            if len(made) >= missing:
                break
            if len(made) == _AT_ONCE:
                self._enqueue(key)
                break
            wait = tally.not_before.get(index, 0) - self._loop.time()
            if wait > 0:
                self._enqueue(key, wait)
                continue
            pod = self._api.create(PODS, key[1], _pod(job, index, tally.failures.get(index, 0)))
            tally.pods.add(self._store.key(PODS, pod))
            made.append(pod)
        return made

    # -- the Job's status

    def _publish(
        self, key: Key, tally: Tally, active: list[Object], leaving: list[Object], done: bool
    ) -> None:
        def change(item: Object) -> None:
            spec, status = item["spec"], item["status"]
            status.update(
                active=len(active),
                ready=sum(has_condition(it, "Ready") for it in active),
                terminating=len(leaving),
                succeeded=len(tally.completed),
                failed=sum(tally.failures.values()),
            )
            if spec["completionMode"] == "Indexed":
                status["completedIndexes"] = compressed(tally.completed)
            if "backoffLimitPerIndex" in spec:
                status["failedIndexes"] = compressed(tally.failed_indexes)
            _set_conditions(item, tally, done, bool(leaving))

        self._store.edit(key, change)


def _set_conditions(item: Object, tally: Tally, done: bool, waits: bool) -> None:
    """How the Job ends: first the intention, the end itself when no pod is left."""
    status = item["status"]
    if tally.failure:
        set_condition(status, condition("FailureTarget", "True", *tally.failure))
        if not waits:
            set_condition(status, condition("Failed", "True", *tally.failure))
    elif done:
        why = ("CompletionsReached", "Reached expected number of succeeded pods")
        set_condition(status, condition("SuccessCriteriaMet", "True", *why))
        if not waits:
            set_condition(status, condition("Complete", "True", *why))
            status["completionTime"] = now()
    elif item["spec"]["suspend"]:
        set_condition(status, condition("Suspended", "True", "JobSuspended", "Job suspended"))
        status.pop("startTime", None)
    elif "startTime" not in status:
        status["startTime"] = now()
        if has_condition(item, "Suspended"):
            set_condition(status, condition("Suspended", "False", "JobResumed", "Job resumed"))


def _failure(spec: Object, tally: Tally) -> tuple[str, str] | None:
    """Reason and message, if the Job fails now."""
    if sum(tally.failures.values()) > spec["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if len(tally.failed_indexes) > spec.get("maxFailedIndexes", _MANY):
        message = "Job has exceeded the specified maximal number of failed indexes"
        return "MaxFailedIndexesExceeded", message
    over = len(tally.completed) + len(tally.failed_indexes)
    if tally.failed_indexes and over >= spec["completions"]:
        return "FailedIndexes", "Job has failed indexes"
    return None


def _ignored(spec: Object, pod: Object) -> bool:
    """Whether the action Ignore of ``podFailurePolicy`` matches a failed pod."""
    found = {(it["type"], it["status"]) for it in pod["status"].get("conditions", ())}
    return any(
        (pattern["type"], pattern.get("status", "True")) in found
        for rule in spec.get("podFailurePolicy", {}).get("rules", ())
        for pattern in rule["onPodConditions"]
    )


def index_of(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


def compressed(indexes: Iterable[int]) -> str:
    """Indexes as a Job's status has them: ``1,3-5,7``."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)


def _pod(job: Object, index: int, failures: int) -> Object:
    metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    own, spec, stem = template["metadata"], template["spec"], metadata["name"]
    labels = {**own["labels"], **job_labels(job)}
    annotations = dict(own.get("annotations", {}))
    if job["spec"]["completionMode"] == "Indexed":
        stem = f"{stem}-{index}"
        labels[INDEX] = annotations[INDEX] = str(index)
        if "backoffLimitPerIndex" in job["spec"]:
            annotations["batch.kubernetes.io/job-index-failure-count"] = str(failures)
        spec["hostname"] = stem
        source = {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}}
        variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
        (container,) = spec["containers"]
        container["env"] = [*container.get("env", ()), variable]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"]}
    return {
        "metadata": {
            "generateName": f"{stem[:57]}-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "finalizers": [FINALIZER],
            "ownerReferences": [{**owner, "uid": metadata["uid"], "controller": True}],
        },
        "spec": spec,
    }
