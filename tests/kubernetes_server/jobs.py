"""The Job controller: makes pods for a Job, counts how they ended, and says how the Job did.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

import asyncio
import copy
import datetime
from dataclasses import dataclass, field

from tests.kubernetes_server import policy
from tests.kubernetes_server.api import Api
from tests.kubernetes_server.defaults import pod_labels
from tests.kubernetes_server.indexes import INDEX, compressed, index_of
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import (
    JOBS,
    PODS,
    Object,
    condition,
    has_condition,
    moment,
    now,
    with_condition,
)
from tests.kubernetes_server.store import Change, Key, suffix

FINALIZER = "batch.kubernetes.io/job-tracking"
_REFUSED_AGAIN = 0.5
_AT_ONCE = 50
"""Pods that are made before others get their turn (really: 500)."""


@dataclass
class Tally:
    """What the controller remembers of a Job. ``live``: pods not yet counted, or not yet gone."""

    live: set[Key] = field(default_factory=set)
    succeeded: int = 0
    failed: int = 0
    completed: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    failures: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    not_before: dict[int, float] = field(default_factory=dict)
    """By index (-1 without): the loop's time before which no new pod is made."""

    verdict: tuple[str, str] | None = None
    """Reason and message with which it fails."""


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
        self._due: dict[Key, asyncio.TimerHandle] = {}
        self._store.listen(self._changed)

    def _changed(self, change: Change) -> None:
        if change.resource == JOBS:
            self._soon(self._store.key(JOBS, change.item))
        elif change.resource == PODS:
            owner = _controller(change.item)
            if owner is None:
                return
            key = self._store.key(PODS, change.item)
            live = self._tally(owner["uid"]).live
            if change.kind == "DELETED":
                live.discard(key)
            elif FINALIZER in change.item["metadata"].get("finalizers", ()) or not _ended(
                change.item
            ):
                live.add(key)
            self._soon((JOBS, key[1], owner["name"]), self._batch)

    def _tally(self, uid: str) -> Tally:
        return self._tallies.setdefault(uid, Tally())

    def _soon(self, key: Key, seconds: float = 0.01) -> None:
        """Look at a Job in a moment; what changes until then is seen with it."""
        at = self._loop.time() + seconds
        due = self._due.get(key)
        if due is not None and not due.cancelled() and due.when() <= at:
            return
        if due is not None:
            due.cancel()
        self._due[key] = self._loop.call_later(seconds, self._look, key)

    def _look(self, key: Key) -> None:
        self._due.pop(key, None)
        job = self._store.find(*key)
        uid = job["metadata"]["uid"] if job else ""
        self._release_orphans(key, uid)
        if (
            job is None
            or job["spec"].get("managedBy", "kubernetes.io/job-controller")
            != "kubernetes.io/job-controller"
        ):
            return
        tally = self._tally(uid)
        self._count(job, tally)
        if has_condition(job, "Complete") or has_condition(job, "Failed"):
            self._expire(key, job)
        elif "deletionTimestamp" not in job["metadata"]:
            self._work(key, job, tally)

    def _release_orphans(self, key: Key, uid: str) -> None:
        """Pods of a Job that is no more are not held for counting."""
        for owner, tally in tuple(self._tallies.items()):
            if owner == uid:
                continue
            for pod in tuple(tally.live):
                item = self._store.find(*pod)
                named = item and _controller(item)
                if named and pod[1] == key[1] and named["name"] == key[2]:
                    self._release(pod)
                    if not _ended(item or {}) and "deletionTimestamp" not in item["metadata"]:  # type: ignore[index]
                        continue
                    tally.live.discard(pod)
            if not tally.live:
                del self._tallies[owner]

    def _release(self, pod: Key) -> None:
        def change(item: Object) -> None:
            finalizers = item["metadata"].get("finalizers", [])
            item["metadata"]["finalizers"] = [it for it in finalizers if it != FINALIZER]

        found = self._store.find(*pod)
        if found and FINALIZER in found["metadata"].get("finalizers", ()):
            self._store.edit(pod, change)

    # -- counting

    def _count(self, job: Object, tally: Tally) -> None:
        """Take every pod that has ended, once: then it may be deleted."""
        failed_only = job["spec"].get("podReplacementPolicy") == "Failed"
        for key in sorted(tally.live, key=lambda it: it[2]):
            pod = self._store.find(*key)
            if pod is None:
                tally.live.discard(key)
                continue
            going = "deletionTimestamp" in pod["metadata"] and not failed_only
            if FINALIZER in pod["metadata"].get("finalizers", ()) and (_ended(pod) or going):
                self._count_pod(job, tally, pod)
                self._release(key)
            found = self._store.find(*key)
            if found is None or _ended(found):
                tally.live.discard(key)

    def _count_pod(self, job: Object, tally: Tally, pod: Object) -> None:
        index = index_of(pod)
        if pod["status"]["phase"] == "Succeeded":
            tally.succeeded += index is None or index not in tally.completed
            if index is not None:
                tally.completed.add(index)
            return
        if job["spec"].get("suspend"):
            return
        action, words = policy.action(job, pod)
        if action == "Ignore":
            tally.ignored += 1
            return
        tally.failed += 1
        slot = -1 if index is None else index
        count = tally.failures[slot] = tally.failures.get(slot, 0) + 1
        wait = min(self._backoff * 2 ** (count - 1), 60 * self._backoff)
        tally.not_before[slot] = self._loop.time() + wait
        if action == "FailJob" and tally.verdict is None:
            tally.verdict = ("PodFailurePolicy", words)
        limit = job["spec"].get("backoffLimitPerIndex")
        if index is not None and limit is not None and (action == "FailIndex" or count > limit):
            tally.failed_indexes.add(index)

    # -- deciding

    def _work(self, key: Key, job: Object, tally: Tally) -> None:
        spec = job["spec"]
        pods = [it for it in (self._store.find(*pod) for pod in tally.live) if it]
        active = [it for it in pods if not _ended(it) and "deletionTimestamp" not in it["metadata"]]
        terminating = [
            it for it in pods if not _ended(it) and "deletionTimestamp" in it["metadata"]
        ]
        if tally.verdict is None:
            tally.verdict = self._failure(key, job, tally, active)
        done = tally.verdict is None and self._succeeded(spec, tally, active)
        if tally.verdict or done or spec.get("suspend"):
            self._delete(job, active)
            terminating, active = [*terminating, *active], []
        elif "startTime" in job["status"]:
            active += self._make(key, job, tally, active, terminating)
        self._publish(key, job, tally, active, terminating, done)

    def _failure(
        self, key: Key, job: Object, tally: Tally, active: list[Object]
    ) -> tuple[str, str] | None:
        spec = job["spec"]
        restarts = sum(policy.restarts(it) for it in active)
        started = job["status"].get("startTime")
        if tally.failed > spec["backoffLimit"] or (
            spec["template"]["spec"]["restartPolicy"] == "OnFailure"
            and restarts
            and restarts >= max(1, spec["backoffLimit"])
        ):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        if "activeDeadlineSeconds" in spec and started and not spec.get("suspend"):
            passed = datetime.datetime.now(datetime.timezone.utc) - moment(started)
            left = spec["activeDeadlineSeconds"] - passed.total_seconds()
            if left <= 0:
                return "DeadlineExceeded", "Job was active longer than specified deadline"
            self._soon(key, left + 0.05)
        most = spec.get("maxFailedIndexes")
        if most is not None and len(tally.failed_indexes) > most:
            words = "Job has exceeded the specified maximal number of failed indexes"
            return "MaxFailedIndexesExceeded", words
        ended = len(tally.completed) + len(tally.failed_indexes)
        if tally.failed_indexes and ended >= spec["completions"]:
            return "FailedIndexes", "Job has failed indexes"
        return None

    def _succeeded(self, spec: Object, tally: Tally, active: list[Object]) -> bool:
        if spec.get("suspend"):
            return False
        if spec.get("completionMode") == "Indexed":
            return len(tally.completed) >= int(spec["completions"])
        if "completions" in spec:
            return tally.succeeded >= int(spec["completions"])
        return tally.succeeded > 0 and not active

    # -- doing

    def _make(
        self, key: Key, job: Object, tally: Tally, active: list[Object], terminating: list[Object]
    ) -> list[Object]:
        """Make the pods that are missing; those that were made."""
        spec = job["spec"]
        busy = [*active, *(terminating if spec.get("podReplacementPolicy") == "Failed" else ())]
        room = spec["parallelism"] - len(busy)
        if spec.get("completionMode") == "Indexed":
            taken = {index_of(it) for it in busy} | tally.completed | tally.failed_indexes
            slots = (it for it in range(spec["completions"]) if it not in taken)
        else:
            missing = spec.get("completions", spec["parallelism"]) - tally.succeeded
            if "completions" not in spec and tally.succeeded:
                missing = 0
            slots = (-1 for _ in range(min(room, missing - len(busy))))
        made: list[Object] = []
        for slot in slots:
            if len(made) >= room:
                break
            if len(made) == _AT_ONCE:
                self._soon(key)
                break
            wait = tally.not_before.get(slot, 0) - self._loop.time()
            if wait > 0:
                self._soon(key, wait)
                continue
            pod = self._make_pod(key, job, tally, slot)
            if pod is None:
                break
            made.append(pod)
        return made

    def _make_pod(self, key: Key, job: Object, tally: Tally, slot: int) -> Object | None:
        try:
            body = _pod(job, slot, tally.failures.get(slot, 0), self._api.minor)
            pod = self._api.create(PODS, key[1], body)
        except Refused as refused:
            words = f"Error creating: {refused}"
            self._api.event(job, "FailedCreate", words, "Warning", "job-controller")
            self._soon(key, _REFUSED_AGAIN)
            return None
        words = f"Created pod: {pod['metadata']['name']}"
        self._api.event(job, "SuccessfulCreate", words, source="job-controller")
        return pod

    def _delete(self, job: Object, active: list[Object]) -> None:
        for pod in active:
            words = f"Deleted pod: {pod['metadata']['name']}"
            self._api.delete(self._store.key(PODS, pod), {})
            self._api.event(job, "SuccessfulDelete", words, source="job-controller")

    def _publish(
        self,
        key: Key,
        job: Object,
        tally: Tally,
        active: list[Object],
        terminating: list[Object],
        done: bool,
    ) -> None:
        spec = job["spec"]
        indexed = spec.get("completionMode") == "Indexed"
        ready = sum(has_condition(it, "Ready") for it in active)
        counts = {"active": len(active), "succeeded": tally.succeeded, "failed": tally.failed}
        counts["ready"], counts["terminating"] = ready, len(terminating)
        texts = {"completedIndexes": compressed(tally.completed) if indexed else ""}
        if spec.get("backoffLimitPerIndex") is not None:
            texts["failedIndexes"] = compressed(tally.failed_indexes)
        events: list[tuple[str, str, str]] = []

        def change(item: Object) -> None:
            status = item["status"]
            for name, value in {**counts, **texts}.items():
                status.pop(name, None)
                if value or (name in ("ready", "terminating") and self._api.minor >= 28):
                    status[name] = value
            if spec.get("backoffLimitPerIndex") is not None:
                status["failedIndexes"] = texts["failedIndexes"]
            if self._api.minor >= 22:
                status["uncountedTerminatedPods"] = {}
            self._judge(item, tally, done, bool(terminating), events)

        changed = self._store.edit(key, change)
        for kind, reason, message in events:
            self._api.event(changed or job, reason, message, kind, "job-controller")

    def _judge(
        self,
        item: Object,
        tally: Tally,
        done: bool,
        waits: bool,
        events: list[tuple[str, str, str]],
    ) -> None:
        """Conditions and times: first the intention (1.31), the end when no pod is left."""
        status, modern = item["status"], self._api.minor >= 31
        if tally.verdict:
            reason, words = tally.verdict
            if modern:
                with_condition(status, condition("FailureTarget", "True", reason, words))
            if not (modern and waits):
                with_condition(status, condition("Failed", "True", reason, words))
                events.append(("Warning", reason, words))
        elif done:
            reason = "CompletionsReached" if modern else ""
            words = "Reached expected number of succeeded pods" if modern else ""
            if modern:
                with_condition(status, condition("SuccessCriteriaMet", "True", reason, words))
            if not (modern and waits):
                with_condition(status, condition("Complete", "True", reason, words))
                status["completionTime"] = now()
                events.append(("Normal", "Completed", "Job completed"))
        elif item["spec"].get("suspend"):
            if not has_condition(item, "Suspended"):
                with_condition(
                    status, condition("Suspended", "True", "JobSuspended", "Job suspended")
                )
                events.append(("Normal", "Suspended", "Job suspended"))
            status.pop("startTime", None)
        elif "startTime" not in status:
            status["startTime"] = now()
            if has_condition(item, "Suspended"):
                with_condition(status, condition("Suspended", "False", "JobResumed", "Job resumed"))
                events.append(("Normal", "Resumed", "Job resumed"))

    def _expire(self, key: Key, job: Object) -> None:
        """``ttlSecondsAfterFinished``."""
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        if seconds is None or "deletionTimestamp" in job["metadata"]:
            return
        ends = [it for it in job["status"]["conditions"] if it["type"] in ("Complete", "Failed")]
        passed = datetime.datetime.now(datetime.timezone.utc) - moment(
            ends[0]["lastTransitionTime"]
        )
        left = seconds - passed.total_seconds()
        if left > 0:
            self._soon(key, left + 0.05)
        else:
            self._api.delete(key, {"propagationPolicy": "Foreground"})


def _ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _controller(pod: Object) -> Object | None:
    owners = pod["metadata"].get("ownerReferences", ())
    return next((it for it in owners if it.get("controller") and it["kind"] == "Job"), None)


def _pod(job: Object, slot: int, failures: int, minor: int) -> Object:
    metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    own = template.get("metadata", {})
    name = metadata["name"]
    labels = {**own.get("labels", {}), **pod_labels(job, minor)}
    annotations = dict(own.get("annotations", {}))
    if slot >= 0:
        annotations[INDEX] = str(slot)
        if minor >= 28:
            labels[INDEX] = str(slot)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            annotations["batch.kubernetes.io/job-index-failure-count"] = str(failures)
        template["spec"]["hostname"] = f"{name}-{slot}"
        path = f"metadata.labels['{INDEX}']" if minor >= 28 else f"metadata.annotations['{INDEX}']"
        source = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
        for container in (
            *template["spec"]["containers"],
            *template["spec"].get("initContainers", ()),
        ):
            variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
            container["env"] = [*container.get("env", ()), variable]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": name,
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    stem = f"{name}-{slot}" if slot >= 0 else name
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{stem[:57]}-{suffix()}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "finalizers": [FINALIZER],
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }
