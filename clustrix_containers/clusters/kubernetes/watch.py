"""One watch of pods and one of Jobs per namespace, for all runs of this process.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import abc
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic

from clustrix_containers.clusters import Tell
from clustrix_containers.errors import ClusterError
from clustrix_containers.worker import contract

from .api import Api, body, lines
from .events import Events
from .manifest import selector
from .status import JobView, PodView, news, view_job, view_pod
from .views import V, Views

PAGE = 500
WORKERS = (contract.INLINE, contract.STORED, contract.FAILED)
"""How what the worker says in a termination message begins."""
WATCH_SECONDS = 240
IDLE = 60.0
"""Seconds without a question after which the watching ends."""
QUIET = 5.0
"""Seconds without news of pods after which none is under way that is older."""
STALE = 45.0
"""Seconds without an answer of the API server after which nothing is known."""


class Watcher:
    """What the Jobs and pods of ours in a namespace are doing."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._lock = threading.RLock()
        self._followers: dict[str, list[Tell]] = {}
        self._asked = 0.0
        self.refusals = Events(api, namespace, "Job", "FailedCreate")
        """Why a Job has no pods."""
        self.failures = Events(api, namespace, "Pod", "Failed")
        """Why a pod does not start."""
        self.preemptions = Events(api, namespace, "Pod", "Preempted")
        """For which other pod a pod had to go."""
        self.evictions = Events(api, namespace, "Pod", "TaintManagerEviction")
        """That a node's taint, as one that is lost has it, has ended a pod."""
        self._pods = _Pods(self, "pods", api.core.list_namespaced_pod, view_pod)
        self._jobs = _Jobs(self, "Jobs", api.batch.list_namespaced_job, view_job)

    def follow(self, run: str, tell: Tell) -> Callable[[], None]:
        """Call ``tell`` whenever anything of a run has changed, until what is returned is called.

        Only while somebody follows a run are its pods' messages kept, which may be long.
        """
        with self._lock:
            self._followers.setdefault(run, []).append(tell)
        missed = any(pod.trimmed for pod in self._pods.views.of(run))
        if missed:
            # What this does not bring is read pod by pod.
            with contextlib.suppress(ClusterError):
                self.refresh(run)

        def end() -> None:
            with self._lock:
                self._followers[run].remove(tell)
                if not self._followers[run]:
                    del self._followers[run]
                    for pod in self._pods.views.of(run):
                        self.taken(pod)

        return end

    def follows(self, run: str) -> bool:
        return run in self._followers

    def look(self) -> None:
        """Make sure that the watches run and have listed once; ClusterError if they cannot.

        Also if nothing has been heard of the API server for long: then nothing is known.
        """
        self._asked = time.monotonic()
        # In this order: at first, pods are known that are newer than what the Jobs say.
        for kind in (self._jobs, self._pods):
            kind.ensure()
            kind.wait()

    def job(self, run: str, attempt: int, element: int) -> JobView | None:
        """The Job that runs an element."""
        for place in ((attempt, None), (attempt, element)):
            if found := self._jobs.views.at(run, place):
                return found[0]
        return None

    def pods(self, run: str, attempt: int, element: int) -> tuple[PodView, ...]:
        """The pods of an element."""
        return self._pods.views.at(run, (attempt, element))

    def all_pods(self, run: str, attempt: int) -> list[PodView]:
        """The pods of a run's attempt."""
        return [pod for pod in self._pods.views.of(run) if pod.attempt == attempt]

    def listed(self, run: str) -> float:
        """When a run's pods were last asked for (monotonic): what was true then is known."""
        return self._pods.listed(run)

    def has_caught_up(self, since: float) -> bool:
        """Whether the watch of pods must have told by now what a Job told at ``since``."""
        now = time.monotonic()
        return now - max(since, self._pods.applied) > QUIET or now - since > STALE

    def taken(self, pod: PodView) -> None:
        """What a pod said is here, and need not be kept in memory."""
        self._pods.views.change(pod, trim)

    def reread(self, pod: PodView) -> PodView:
        """A trimmed view, whole again; as it is if the pod is not there any more."""
        from kubernetes.client import ApiException

        try:
            answer = self._api.call(
                "read a pod",
                self._api.core.read_namespaced_pod,
                pod.name,
                self._namespace,
                final=(404,),
                _preload_content=False,
            )
        except ApiException:
            return pod
        return view_pod(body(answer))

    def refresh(self, run: str) -> None:
        """Ask for a run's pods now: the watches of Jobs and of pods do not run in step."""
        self._pods.refresh(run)

    def idle(self) -> bool:
        return time.monotonic() - self._asked > IDLE

    def changed(self, run: str | None = None, elements: Iterable[int] | None = None) -> None:
        """Tell those who follow the run, or all."""
        with self._lock:
            runs = [run] if run is not None else list(self._followers)
            followers = [tell for it in runs for tell in self._followers.get(it, ())]
        for tell in followers:
            tell(elements)


class _Kind(abc.ABC, Generic[V]):
    """The watch of one kind of object: list, then watch from there; list again on 410."""

    def __init__(
        self,
        watcher: Watcher,
        name: str,
        listing: Callable[..., Any],
        view: Callable[[Mapping[str, Any]], V],
    ) -> None:
        self._watcher, self._name, self._listing = watcher, name, listing
        self._view: Callable[[Mapping[str, Any]], V] = view
        self.views: Views[V] = Views()
        self._asked: dict[str, float] = {}
        """When a run was last asked about by itself; all of them: ``""``."""
        self._thread: threading.Thread | None = None
        self._listed = threading.Event()
        self._heard = 0.0
        self._error: Exception | None = None
        self.applied = 0.0
        """When the last change was taken note of (monotonic)."""
        self._broken: float | None = None
        """Since when the API server has not let it watch."""

    def ensure(self) -> None:
        with self._watcher._lock:
            if self._thread is None or not self._thread.is_alive():
                self._listed.clear()
                self._error = None
                self._heard, self._broken = time.monotonic(), None
                self._thread = threading.Thread(
                    target=self._run, name=f"clustrix-watch-{self._name}", daemon=True
                )
                self._thread.start()

    def wait(self) -> None:
        listed = self._listed.wait(STALE)
        if self._error is not None:
            raise self._error
        now, broken = time.monotonic(), self._broken
        silent = now - self._heard > WATCH_SECONDS + STALE
        if not listed or silent or (broken is not None and now - broken > STALE):
            text = f"the API server says nothing of its {self._name}"
            raise ClusterError(text, temporary=True)

    def _run(self) -> None:
        pause = 0.1
        version: str | None = None
        while not self._watcher.idle():
            try:
                if version is None:
                    version = self._list()
                version = self._watch(version)
                pause = 0.1
            except _GoneError:  # noqa: PERF203
                version = None
            except ClusterError as error:
                # The list has been tried for long: whoever asks is told, and asks again.
                self._error = error
                self._listed.set()
                self._watcher.changed()
                return
            except Exception as error:
                # A connection that broke goes on from where it was; after an answer, all is
                # listed again, which says what is wrong.
                if getattr(error, "status", None):
                    version = None
                self._broken = self._broken or time.monotonic()
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, 5.0)

    def listed(self, run: str) -> float:
        return max(self._asked.get("", 0.0), self._asked.get(run, 0.0))

    def refresh(self, run: str) -> None:
        now = time.monotonic()
        self.views.add(lambda: self._all(selector(run))[0])
        self._asked[run] = now

    def _list(self) -> str:
        now = time.monotonic()
        views, version = self._all(selector())
        self.views.fill(views)
        self._asked = {"": now}
        self._heard = time.monotonic()
        self._listed.set()
        self._watcher.changed()
        return version

    def _all(self, chosen: str) -> tuple[list[V], str]:
        """The views of what is there, and the resource version of that."""
        views: list[V] = []
        token: str | None = None
        while True:
            answer = body(
                self._watcher._api.call(
                    f"list {self._name}",
                    self._listing,
                    self._watcher._namespace,
                    label_selector=chosen,
                    limit=PAGE,
                    _preload_content=False,
                    **({"_continue": token} if token else {}),
                )
            )
            views += (self.kept(self._view(item)) for item in answer["items"])
            token = answer["metadata"].get("continue")
            if not token:
                return views, str(answer["metadata"]["resourceVersion"])

    def kept(self, view: V) -> V:
        """What of a view is kept."""
        return view

    @abc.abstractmethod
    def apply(self, kind: str, view: V) -> None:
        """Take note of what the watch says, and tell those whom it concerns."""

    def _watch(self, version: str) -> str:
        answer = self._listing(
            self._watcher._namespace,
            label_selector=selector(),
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_SECONDS,
            _preload_content=False,
            _request_timeout=(10, WATCH_SECONDS + 30),
        )
        self._broken = None
        for line in lines(answer):
            event = json.loads(line)
            item = event["object"]
            self._heard = time.monotonic()
            if event["type"] == "ERROR":
                if item.get("code") == 410:
                    raise _GoneError
                raise OSError(str(item.get("message")))
            version = item["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self.apply(event["type"], self.kept(self._view(item)))
                self.applied = self._heard
            if self._watcher.idle():
                break
        self._heard = time.monotonic()
        return version


class _Pods(_Kind[PodView]):
    def kept(self, view: PodView) -> PodView:
        """Without the worker's message, if it is here already or nobody waits for it."""
        if not (view.message or "").startswith(WORKERS):
            return view
        before = self.views.same(view)
        needed = self._watcher.follows(view.run) and not (before and before.trimmed)
        return view if needed else trim(view)

    def apply(self, kind: str, view: PodView) -> None:
        before = self.views.same(view)
        if kind == "DELETED":
            if not (view.started and self._watcher.follows(view.run)):
                self.views.drop(view)
                before = None
            else:
                # It may have brought a result along, and it tells why it is gone.
                view = replace(view, deleted=True, gone=True, ready=False)
                self.views.put(view)
        elif view != before:
            self.views.put(view)
        if view != before:
            self._watcher.changed(view.run, () if view.element is None else (view.element,))


class _Jobs(_Kind[JobView]):
    def kept(self, view: JobView) -> JobView:
        return replace(view, heard=time.monotonic())

    def apply(self, kind: str, view: JobView) -> None:
        before = self.views.same(view)
        if kind == "DELETED":
            self.views.drop(view)
        elif view != before:
            self.views.put(view)
        else:
            return
        concerned: Iterable[int] | None = None if view.element is None else (view.element,)
        if kind != "DELETED" and before is not None and before.counted(view):
            concerned = concerned or news(before, view)
        if concerned is None or concerned:
            self._watcher.changed(view.run, concerned)


def trim(pod: PodView) -> PodView:
    """Without the worker's message, if that is what it said."""
    if not (pod.message or "").startswith(WORKERS):
        return pod
    return replace(pod, message=None, trimmed=True)


class _GoneError(Exception):
    """The resource version is too old: everything is listed again."""


_watchers: dict[tuple[int, str], Watcher] = {}
_lock = threading.Lock()


def watcher(api: Api, namespace: str) -> Watcher:
    """The one watcher of a namespace in this process."""
    key = (id(api), namespace)
    with _lock:
        if key not in _watchers:
            _watchers[key] = Watcher(api, namespace)
        return _watchers[key]
