"""One watch of pods and one of Jobs per namespace, for all runs of this process.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from clustrix_containers.errors import ClusterError

from .api import Api, body, lines
from .events import Events
from .manifest import selector
from .verdict import JobView, PodView, view_job, view_pod

PAGE = 500
WATCH_SECONDS = 240
IDLE = 60.0
"""Seconds without a question after which the watching ends."""
STALE = 45.0
"""Seconds without an answer of the API server after which nothing is known."""


class Watcher:
    """What the Jobs and pods of ours in a namespace are doing."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._lock = threading.RLock()
        self._wakers: list[Callable[[], None]] = []
        self._asked = 0.0
        self.refusals = Events(api, namespace, "Job", "FailedCreate")
        """Why a Job has no pods."""
        self.failures = Events(api, namespace, "Pod", "Failed")
        """Why a pod does not start."""
        self.preemptions = Events(api, namespace, "Pod", "Preempted")
        """For which other pod a pod had to go."""
        self.evictions = Events(api, namespace, "Pod", "TaintManagerEviction")
        """That a node's taint, as one that is lost has it, has ended a pod."""
        self._pods = _Kind(self, "pods", api.core.list_namespaced_pod, view_pod)
        self._jobs = _Kind(self, "Jobs", api.batch.list_namespaced_job, view_job)

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever anything has changed."""
        with self._lock:
            if wake not in self._wakers:
                self._wakers.append(wake)

    def look(self) -> None:
        """Make sure that the watches run and have listed once; ClusterError if they cannot.

        Also if nothing has been heard of the API server for long: then nothing is known.
        """
        self._asked = time.monotonic()
        for kind in (self._jobs, self._pods):
            kind.ensure()
        for kind in (self._jobs, self._pods):
            kind.wait()

    def job(self, run: str, attempt: int, element: int) -> JobView | None:
        """The Job that runs an element."""
        with self._lock:
            found = self._jobs.by_run.get(run, {}).values()
            return next(
                (job for job in found if job.attempt == attempt and job.element in (None, element)),
                None,
            )

    def jobs(self, run: str) -> list[JobView]:
        with self._lock:
            return list(self._jobs.by_run.get(run, {}).values())

    def pods(self, run: str, attempt: int) -> dict[int, list[PodView]]:
        """The pods of a run's attempt, by element."""
        found: dict[int, list[PodView]] = {}
        with self._lock:
            for pod in self._pods.by_run.get(run, {}).values():
                if pod.attempt == attempt and pod.element is not None:
                    found.setdefault(pod.element, []).append(pod)
        return found

    def refresh(self, run: str) -> None:
        """Ask for a run's pods now: the watches of Jobs and of pods do not run in step."""
        self._pods.refresh(run)

    def idle(self) -> bool:
        return time.monotonic() - self._asked > IDLE

    def changed(self) -> None:
        with self._lock:
            wakers = list(self._wakers)
        for wake in wakers:
            wake()


class _Kind:
    """The watch of one kind of object: list, then watch from there; list again on 410."""

    def __init__(
        self,
        watcher: Watcher,
        name: str,
        listing: Callable[..., Any],
        view: Callable[[Mapping[str, Any]], Any],
    ) -> None:
        self._watcher, self._name, self._listing, self._view = watcher, name, listing, view
        self.by_run: dict[str, dict[str, Any]] = {}
        self._thread: threading.Thread | None = None
        self._listed = threading.Event()
        self._heard = 0.0
        self._error: Exception | None = None
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

    def _list(self) -> str:
        found: dict[str, dict[str, Any]] = {}
        token: str | None = None
        while True:
            answer = body(
                self._watcher._api.call(
                    f"list {self._name}",
                    self._listing,
                    self._watcher._namespace,
                    label_selector=selector(),
                    limit=PAGE,
                    _preload_content=False,
                    **({"_continue": token} if token else {}),
                )
            )
            for item in answer["items"]:
                view = self._view(item)
                found.setdefault(view.run, {})[view.uid] = view
            token = answer["metadata"].get("continue")
            if not token:
                break
        with self._watcher._lock:
            self.by_run = found
        self._heard = time.monotonic()
        self._listed.set()
        self._watcher.changed()
        return str(answer["metadata"]["resourceVersion"])

    def refresh(self, run: str) -> None:
        answer = body(
            self._watcher._api.call(
                f"list {self._name}",
                self._listing,
                self._watcher._namespace,
                label_selector=selector(run),
                _preload_content=False,
            )
        )
        with self._watcher._lock:
            known = self.by_run.setdefault(run, {})
            for item in answer["items"]:
                view = self._view(item)
                known[view.uid] = view

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
                self._apply(event["type"], item)
            if self._watcher.idle():
                break
        self._heard = time.monotonic()
        return version

    def _apply(self, kind: str, item: Mapping[str, Any]) -> None:
        view = self._view(item)
        with self._watcher._lock:
            known = self.by_run.setdefault(view.run, {})
            if kind != "DELETED":
                known[view.uid] = view
            elif isinstance(view, PodView) and view.started:
                # It may have brought a result along, and it tells why it is gone.
                known[view.uid] = replace(view, deleted=True, gone=True, ready=False)
            else:
                known.pop(view.uid, None)
        self._watcher.changed()


class _GoneError(Exception):
    """The resource version is too old: everything is listed again."""


_watchers: dict[tuple[int, str], Watcher] = {}
_lock = threading.Lock()


def watcher(api: Api, namespace: str) -> Watcher:
    """The one watcher of a namespace in this process."""
    with _lock:
        return _watchers.setdefault((id(api), namespace), Watcher(api, namespace))
