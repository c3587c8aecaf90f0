"""Pods and Jobs as compact values, and those of one kind that are known.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ and job-v1
"""

from __future__ import annotations

import functools
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from clustrix_containers.clusters.kubernetes.manifest import (
    ANNOTATION_COUNT,
    CONTAINER,
    INDEX,
    LABEL_ATTEMPT,
    LABEL_ELEMENT,
    LABEL_QUEUE,
    LABEL_RUN,
)

IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod. Times are seconds since the epoch.

    ``message`` is the termination message of its container.
    """

    run: str
    attempt: int
    element: int
    uid: str
    name: str
    node: str
    phase: str
    created: float
    ready: bool = False
    """Whether it holds a result until somebody takes it."""
    deleted: bool = False
    gone: bool = False
    """Whether it no longer exists: this is how it was last seen."""
    started: bool = False
    exit_code: int | None = None
    message: str | None = None
    trimmed: bool = False
    """Whether its message is not kept here: the pod itself has it."""
    reason: str = ""
    """Why its container, else the pod, ended or waits."""
    detail: str = ""
    pod_reason: str = ""
    disruption: str = ""
    memory: str = ""
    """Its memory limit, as the API writes it."""

    @property
    def final(self) -> bool:
        """Whether it will not change any more."""
        return self.phase in ("Succeeded", "Failed") or self.deleted or self.gone

    @property
    def ended(self) -> bool:
        over = self.phase in ("Succeeded", "Failed") or self.exit_code is not None
        return over or self.gone

    @property
    def may_run(self) -> bool:
        """Whether it runs, or will unless somebody deletes it."""
        return not self.ended and (self.started or not self.deleted)

    @property
    def stuck(self) -> bool:
        """Whether its node cannot start it, and tries again."""
        return not self.started and self.reason in IMAGE_REASONS + _CONFIG_REASONS

    @property
    def cut_off(self) -> bool:
        """Whether it was deleted while it ran, and not ended by anything else."""
        alone = not self.pod_reason and not self.disruption and self.reason != "OOMKilled"
        return self.deleted and alone and self.exit_code in (None, 137, 143)


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
    """Kueue's queue, which decides when it may run."""
    seen_at: float = field(default=0.0, compare=False)
    """When this was first seen here (monotonic)."""


def view_pod(pod: Mapping[str, Any]) -> PodView:
    """The view of a pod as the API gives it."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    container = _ours(spec.get("containers", ())) or {}
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
        node=_same(spec.get("nodeName", "")),
        phase=_same(status.get("phase", "Pending")),
        created=_seconds(metadata.get("creationTimestamp")),
        # One that does not hold results is Ready as soon as it runs.
        ready="readinessProbe" in container and conditions.get("Ready", {}).get("status") == "True",
        deleted="deletionTimestamp" in metadata,
        pod_reason=status.get("reason", ""),
        detail=status.get("message", ""),
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        memory=_same(container.get("resources", {}).get("limits", {}).get("memory", "")),
    )
    if (own := _ours(status.get("containerStatuses", ()))) is not None:
        return _with_container(view, own.get("state", {}))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return replace(view, reason="Unschedulable", detail=scheduled.get("message", ""))
    return view


def _same(text: str) -> str:
    """One string object for all pods with equal text."""
    return sys.intern(str(text))


def _ours(containers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((it for it in containers if it["name"] == CONTAINER), None)


def _with_container(view: PodView, state: Mapping[str, Any]) -> PodView:
    if ended := state.get("terminated"):
        return replace(
            view,
            started=True,
            exit_code=ended["exitCode"],
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
        count=int(metadata.get("annotations", {}).get(ANNOTATION_COUNT, "1")),
        indexed=indexed,
        suspended=bool(spec.get("suspend")),
        condition=final.get("type", ""),
        reason=final.get("reason", ""),
        detail=final.get("message", ""),
        completed=status.get("completedIndexes", ""),
        failed=status.get("failedIndexes", ""),
        queue=labels.get(LABEL_QUEUE, ""),
        retries=int(
            spec.get("backoffLimitPerIndex", 0 if indexed else spec.get("backoffLimit", 0))
        ),
        deleted="deletionTimestamp" in metadata,
    )


def within(indexes: str, index: int) -> bool:
    """Whether an index is in ``"1,3-5,7"``, as a Job's status writes them."""
    ranges = _ranges(indexes)
    place = bisect_right(ranges, index, key=lambda it: it.start) - 1
    return place >= 0 and index in ranges[place]


@functools.lru_cache(16)
def _ranges(indexes: str) -> Sequence[range]:
    """The parts of ``indexes``, which are in ascending order."""
    parts = [part.partition("-") for part in indexes.split(",") if part]
    return [range(int(first), int(last or first) + 1) for first, _, last in parts]


def newly_ended(before: JobView, later: JobView) -> set[int]:
    """The elements that have ended between two views of a Job, and some that had before."""
    found: set[int] = set()
    for old, new in ((before.completed, later.completed), (before.failed, later.failed)):
        found.update(*set(_ranges(new)).difference(_ranges(old)))
    return found


def newest(pods: Sequence[PodView]) -> PodView | None:
    """The pod that counts: one that lives, else the last."""
    return max(
        pods, key=lambda pod: (not pod.deleted, not pod.ended, pod.created, pod.uid), default=None
    )


def _seconds(stamp: str | None) -> float:
    """Seconds since the epoch of a time as the API writes it (RFC 3339)."""
    if not stamp:
        return 0.0
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


Place = tuple[int, "int | None"]
"""Attempt and element."""
V = TypeVar("V", bound="PodView | JobView")


class Views(Generic[V]):
    """Those of one kind, by run, attempt and element. Thread-safe; one per object, by its uid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_run: dict[str, dict[Place, tuple[V, ...]]] = {}
        self._recording: list[set[str]] = []

    def at(self, run: str, place: Place) -> tuple[V, ...]:
        return self._by_run.get(run, {}).get(place, ())

    def of(self, run: str) -> list[V]:
        with self._lock:
            return [view for views in self._by_run.get(run, {}).values() for view in views]

    def same(self, view: V) -> V | None:
        """The view of the same object that is here."""
        known = self.at(view.run, (view.attempt, view.element))
        return next((it for it in known if it.uid == view.uid), None)

    def put(self, view: V) -> None:
        with self._lock:
            self._put(self._by_run, view)
            self._record(view)

    def drop(self, view: V) -> None:
        """Forget an object, and its run with its last one."""
        with self._lock:
            self._record(view)
            places = self._by_run.get(view.run, {})
            place = view.attempt, view.element
            rest = tuple(it for it in places.get(place, ()) if it.uid != view.uid)
            if rest:
                places[place] = rest
            else:
                places.pop(place, None)
                if not places:
                    self._by_run.pop(view.run, None)

    def change(self, view: V, change: Callable[[V], V]) -> None:
        """Change the view of the same object, if it is (still) here."""
        with self._lock:
            known = self.same(view)
            if known is not None:
                self._put(self._by_run, change(known))

    def fill(self, views: Iterable[V]) -> None:
        """Replace all."""
        found: dict[str, dict[Place, tuple[V, ...]]] = {}
        for view in views:
            self._put(found, view)
        with self._lock:
            self._by_run = found

    def add(self, listing: Callable[[], Iterable[V]]) -> None:
        """Put what ``listing`` gives, but not over what has changed, or was filled, in the meantime."""
        changed: set[str] = set()
        with self._lock:
            self._recording.append(changed)
            before = self._by_run
        views: list[V] = []
        try:
            views = list(listing())
        finally:
            with self._lock:
                self._recording.remove(changed)
                for view in views:
                    if view.uid not in changed and self._by_run is before:
                        self._put(self._by_run, view)

    def _record(self, view: V) -> None:
        for changed in self._recording:
            changed.add(view.uid)

    @staticmethod
    def _put(by_run: dict[str, dict[Place, tuple[V, ...]]], view: V) -> None:
        places = by_run.setdefault(view.run, {})
        place: Place = (view.attempt, view.element)
        others = [it for it in places.get(place, ()) if it.uid != view.uid]
        places[place] = (*others, view)
