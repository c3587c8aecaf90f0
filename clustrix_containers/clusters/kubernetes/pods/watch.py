"""One watch of pods and one of Jobs, for all runs of a target in this process.

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

from clustrix_containers.clusters import Notify
from clustrix_containers.clusters.kubernetes.api import Api, lines
from clustrix_containers.clusters.kubernetes.manifest import selector
from clustrix_containers.errors import ClusterError
from clustrix_containers.worker import contract

from .views import JobView, PodView, V, Views, newly_ended, view_job, view_pod

WORKER_MESSAGES = (contract.INLINE, contract.STORED, contract.FAILED)
"""How a termination message begins that our worker wrote."""
WATCH_SECONDS = 240
IDLE = 60.0
"""Seconds without a question after which the watches end."""
QUIET = 5.0
"""Seconds without changes of pods after which no older one is under way."""
STALE = 45.0
"""Seconds without a response of the API server after which nothing is known."""


class Watcher:
    """What the Jobs and pods of ours in a namespace are doing."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.lock = threading.RLock()
        self._subscribers: dict[str, list[Notify]] = {}
        self._used = 0.0
        self._pods = _Pods(self, "pod", view_pod)
        self._jobs = _Jobs(self, "job", view_job)

    def subscribe(self, run: str, notify: Notify) -> Callable[[], None]:
        """Call ``notify`` whenever anything of a run has changed, until what is returned is called.

        Only while a run has subscribers are its pods' messages kept, which may be long.
        """
        with self.lock:
            self._subscribers.setdefault(run, []).append(notify)
        if any(pod.trimmed for pod in self._pods.views.of(run)):
            # What this does not bring is read pod by pod.
            with contextlib.suppress(ClusterError):
                self.refresh(run)

        def end() -> None:
            with self.lock:
                self._subscribers[run].remove(notify)
                if not self._subscribers[run]:
                    del self._subscribers[run]
                    for pod in self._pods.views.of(run):
                        self.trim(pod)

        return end

    def has_subscribers(self, run: str) -> bool:
        return run in self._subscribers

    def ensure(self) -> None:
        """Make sure that the watches run and have listed once; ``ClusterError`` if they cannot.

        Also if the API server has been silent for long: then nothing is known.
        """
        self._used = time.monotonic()
        # In this order: at first, pods are known that are newer than what the Jobs report.
        self._jobs.ensure()
        self._pods.ensure()

    def job(self, run: str, attempt: int, element: int) -> JobView | None:
        """The Job that runs an element."""
        for place in ((attempt, None), (attempt, element)):
            if found := self._jobs.views.at(run, place):
                return found[0]
        return None

    def pods(self, run: str, attempt: int, element: int) -> tuple[PodView, ...]:
        """The pods of an element."""
        return self._pods.views.at(run, (attempt, element))

    def has_begun(self, run: str, attempt: int) -> bool:
        """Whether any pod of a run's attempt has started."""
        pods = self._pods.views.of(run)
        return any(pod.attempt == attempt and (pod.started or pod.ended) for pod in pods)

    def listed(self, run: str) -> float:
        """When a run's pods were last listed (monotonic): what was true then is known."""
        listings = self._pods.listings
        return max(listings.get("", 0.0), listings.get(run, 0.0))

    def has_caught_up(self, since: float) -> bool:
        """Whether the watch of pods must have reported by now what a Job reported at ``since``."""
        now = time.monotonic()
        return now - max(since, self._pods.applied) > QUIET or now - since > STALE

    def trim(self, pod: PodView) -> None:
        """A pod's message has been used, and need not be kept in memory."""
        self._pods.views.change(pod, trimmed)

    def reread(self, pod: PodView) -> PodView:
        """A trimmed view, whole again; as it is if the pod no longer exists."""
        found = self.api.read("pod", pod.name)
        return pod if found is None else view_pod(found)

    def refresh(self, run: str) -> None:
        """List a run's pods now: the watches of Jobs and of pods do not run in step."""
        now, pods = time.monotonic(), self._pods
        pods.views.add(lambda: pods.all(selector(run))[0])
        pods.listings[run] = now

    def is_idle(self) -> bool:
        return time.monotonic() - self._used > IDLE

    def changed(self, run: str | None = None, elements: Iterable[int] | None = None) -> None:
        """Notify the subscribers of a run, or all."""
        with self.lock:
            runs = [run] if run is not None else list(self._subscribers)
            subscribers = [notify for it in runs for notify in self._subscribers.get(it, ())]
        for notify in subscribers:
            notify(elements)


class _Kind(abc.ABC, Generic[V]):
    """The watch of one kind of object: list, then watch from there; list again on 410."""

    def __init__(self, watcher: Watcher, name: str, view: Callable[[Mapping[str, Any]], V]) -> None:
        self._watcher, self._name = watcher, name
        self._view: Callable[[Mapping[str, Any]], V] = view
        self.views: Views[V] = Views()
        self.listings: dict[str, float] = {}
        """When a run was last listed by itself; all of them: ``""``."""
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._seen_at = 0.0
        """When the API server last responded."""
        self.applied = 0.0
        """When the last change was applied (monotonic)."""
        self._broken: float | None = None
        """Since when the API server has not allowed a watch."""

    def ensure(self) -> None:
        with self._watcher.lock:
            if self._thread is None or not self._thread.is_alive():
                self._ready.clear()
                self._error = None
                self._seen_at, self._broken = time.monotonic(), None
                self._thread = threading.Thread(
                    target=self._run, name=f"clustrix-watch-{self._name}", daemon=True
                )
                self._thread.start()
        ready = self._ready.wait(STALE)
        if self._error is not None:
            raise self._error
        now, broken = time.monotonic(), self._broken
        silent = now - self._seen_at > WATCH_SECONDS + STALE
        if not ready or silent or (broken is not None and now - broken > STALE):
            text = f"the API server does not respond to a watch of {self._name}s"
            raise ClusterError(text, temporary=True)

    def _run(self) -> None:
        pause = 0.1
        version: str | None = None
        while not self._watcher.is_idle():
            try:
                if version is None:
                    version = self._list()
                version = self._watch(version)
                pause = 0.1
            except _ExpiredError:  # noqa: PERF203
                version = None
            except ClusterError as error:
                # The list was retried for long: whoever waits gets the error, and tries again.
                self._error = error
                self._ready.set()
                self._watcher.changed()
                return
            except Exception as error:
                # A connection that broke goes on from where it was; after a response, all is
                # listed again, which shows what is wrong.
                if getattr(error, "status", None):
                    version = None
                self._broken = self._broken or time.monotonic()
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, 5.0)

    def _list(self) -> str:
        now = time.monotonic()
        views, version = self.all(selector())
        self.views.fill(views)
        self.listings = {"": now}
        self._seen_at = time.monotonic()
        self._ready.set()
        self._watcher.changed()
        return version

    def all(self, chosen: str) -> tuple[list[V], str]:
        """The views of all objects, and the resource version of that."""
        views: list[V] = []
        version = ""
        for page in self._watcher.api.pages(self._name, chosen):
            views += (self.kept(self._view(item)) for item in page["items"])
            version = page["metadata"]["resourceVersion"]
        return views, version

    @abc.abstractmethod
    def kept(self, view: V) -> V:
        """What of a view is kept."""

    @abc.abstractmethod
    def apply(self, kind: str, view: V) -> None:
        """Apply an event of the watch, and notify whom it concerns."""

    def _watch(self, version: str) -> str:
        api = self._watcher.api
        response = api.function("list", self._name)(
            api.namespace,
            label_selector=selector(),
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_SECONDS,
            _preload_content=False,
            _request_timeout=(10, WATCH_SECONDS + 30),
        )
        self._broken = None
        for line in lines(response):
            event = json.loads(line)
            item = event["object"]
            self._seen_at = time.monotonic()
            if event["type"] == "ERROR":
                if item.get("code") == 410:
                    raise _ExpiredError
                raise OSError(str(item.get("message")))
            version = item["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self.apply(event["type"], self.kept(self._view(item)))
                self.applied = self._seen_at
            if self._watcher.is_idle():
                break
        self._seen_at = time.monotonic()
        return version


class _Pods(_Kind[PodView]):
    def kept(self, view: PodView) -> PodView:
        """Without the worker's message, if it has been used already or nobody waits for it."""
        before = self.views.same(view)
        needed = self._watcher.has_subscribers(view.run) and not (before and before.trimmed)
        return view if needed else trimmed(view)

    def apply(self, kind: str, view: PodView) -> None:
        before = self.views.same(view)
        if kind == "DELETED":
            if not (view.started and self._watcher.has_subscribers(view.run)):
                self.views.drop(view)
                before = None
            else:
                # It may hold a message with a result, and the reason why it is gone.
                view = replace(view, deleted=True, gone=True, ready=False)
                self.views.put(view)
        elif view != before:
            self.views.put(view)
        if view != before:
            self._watcher.changed(view.run, (view.element,))


class _Jobs(_Kind[JobView]):
    def kept(self, view: JobView) -> JobView:
        return replace(view, seen_at=time.monotonic())

    def apply(self, kind: str, view: JobView) -> None:
        before = self.views.same(view)
        if kind == "DELETED":
            self.views.drop(view)
        elif view != before:
            self.views.put(view)
        else:
            return
        concerned: Iterable[int] | None = None if view.element is None else (view.element,)
        if concerned is None and before is not None and kind != "DELETED":
            # All are concerned, unless nothing has changed but which of them have ended.
            same = replace(before, completed=view.completed, failed=view.failed) == view
            concerned = newly_ended(before, view) if same else None
        if concerned is None or concerned:
            self._watcher.changed(view.run, concerned)


def trimmed(pod: PodView) -> PodView:
    """Without its message, if our worker wrote that."""
    if not (pod.message or "").startswith(WORKER_MESSAGES):
        return pod
    return replace(pod, message=None, trimmed=True)


class _ExpiredError(Exception):
    """The resource version is too old: everything is listed again."""
