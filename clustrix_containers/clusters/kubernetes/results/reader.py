"""A pod that reads results from a volume claim, for a client that has not mounted it.

It is a Job of the run's own image that sleeps, and reads on request, through exec. One serves a run
and this process. It ends when it has not been used for a while, also if its client is gone.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from clustrix_containers.clusters.kubernetes import manifest
from clustrix_containers.clusters.kubernetes.api import Api, Server
from clustrix_containers.clusters.kubernetes.pods.status import REFUSED, Events
from clustrix_containers.clusters.kubernetes.pods.views import PodView, view_pod
from clustrix_containers.clusters.kubernetes.settings import Settings
from clustrix_containers.errors import ClusterError
from clustrix_containers.results import delivery
from clustrix_containers.results.outcome import Expected
from clustrix_containers.results.stores.volume import MOUNT_PATH, VolumeStore

from . import take
from .stream import DELIVER, deliver

IDLE = 120
"""Seconds without use after which the pod ends by itself."""
LINGER = 10.0
"""Seconds without use after which this process deletes it."""
STARTS = 15.0
"""Seconds for which a caller waits for it to start; later, the caller tries again."""
STUCK = 30.0
"""Seconds without success after which another pod is tried: its node may be gone."""
MAX_AGE = 86400
"""Seconds that the Job may run in all."""
MAX_FAILURES = 3
"""How many pods in a row may end without having been of use."""
READS = f"{manifest.PREFIX}/reads"
SIGN = "/tmp/used"  # noqa: S108


class Reader:
    """At most one Job, created when something is to be read; threads may share it."""

    def __init__(self, api: Api, settings: Settings, events: Events, image: str, run: str) -> None:
        assert settings.volume is not None
        self._api, self._settings, self._events = api, settings, events
        self._store, self._image, self._run = settings.volume, image, run
        self._lock = threading.RLock()
        self._job: Any = None
        self._begun = self._used = 0.0
        self._users = self._failures = 0
        self._broken: float | None = None
        """Since when no read has succeeded."""

    def fetch(self, expected: Expected, stored: delivery.Stored | None) -> bool:
        """Bring an outcome into the run's directory; False if it is not visible on the volume.

        ``ClusterError`` (``temporary``) while the pod has not started, or if the read broke off.
        """
        place = str(self._store.directory(MOUNT_PATH, self._run))
        mark = stored.mark if stored is not None else "-"
        chosen = (str(expected.element), str(expected.attempt), mark, SIGN)
        words = ("read", place, *chosen)
        with self._pod() as pod, deliver(self._api, pod, words) as process:
            try:
                take.receive(process, pod, expected)
            except delivery.Absent:
                return False
        return True

    def delete(self, timeout: float = 10.0) -> None:
        """Delete the Job, if there is one; what it cannot delete ends by itself."""
        # Without the lock: whoever has it may be waiting for long, and this process ends.
        job, self._job = self._job, None
        if job is None:
            return
        with contextlib.suppress(Exception):
            name = job["metadata"]["name"]
            self._api.delete("job", name, patience=0.0, _request_timeout=timeout)

    @contextlib.contextmanager
    def _pod(self) -> Iterator[str]:
        """The name of a running pod, for as long as it is needed."""
        with self._lock:
            self._used = time.monotonic()
            name = self._started()
            self._users += 1
        try:
            yield name
            self._failures, self._broken = 0, None
        except ClusterError:
            with self._lock:
                self._broken = self._broken or time.monotonic()
                if time.monotonic() - self._broken > STUCK:
                    self._drop()
            raise
        finally:
            with self._lock:
                self._users -= 1
                self._used = time.monotonic()

    def _started(self) -> str:
        if self._job is None:
            self._make()
        pause = 0.1
        while True:
            pod = self._look()
            if self._is_over(pod):
                self._drop(useful=pod is not None and pod.exit_code == 0)
                if self._failures >= MAX_FAILURES:
                    raise self._problem("ends at once", pod)
                self._make()
            elif pod is not None and pod.started:
                return pod.name
            if time.monotonic() - self._begun > STARTS:
                raise self._problem("does not start", pod, temporary=True)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _make(self) -> None:
        api = self._api
        name = f"{self._run}-reads-{secrets.token_hex(3)}"
        job = manifest_of(self._settings, api.server, self._store, self._image, self._run, name)
        # None: the response to an earlier try was lost.
        self._job = api.create("job", job) or api.read("job", name)
        self._begun = time.monotonic()
        threading.Thread(target=self._expire, args=(self._job,), daemon=True, name=name).start()

    def _look(self) -> PodView | None:
        chosen = f"{READS}={self._job['metadata']['name']}"
        found = map(view_pod, self._api.items("pod", chosen))
        return max(found, key=lambda pod: pod.created, default=None)

    def _is_over(self, pod: PodView | None) -> bool:
        """Whether nothing can be read any more: it was idle, or somebody has ended it."""
        if pod is not None:
            return pod.ended or pod.deleted
        return self._api.read("job", self._job["metadata"]["name"]) is None

    def _drop(self, *, useful: bool = False) -> None:
        """Give the Job up; the next one may do better."""
        self.delete()
        self._broken = None
        self._failures += not useful

    def _problem(self, what: str, pod: PodView | None, **fields: Any) -> ClusterError:
        return ClusterError(
            f"the pod that reads results from the volume claim {self._store.claim} {what}:"
            f" {self._why(pod)}",
            hint=f"They stay where they are; later: cxc result {self._run}",
            **fields,
        )

    def _why(self, pod: PodView | None) -> str:
        if pod is not None:
            code = f"exit code {pod.exit_code}" if pod.exit_code else ""
            return " ".join(filter(None, [pod.reason or pod.pod_reason, pod.detail, code])) or (
                f"it is {pod.phase}"
            )
        if self._job is None:
            return "its Job was deleted"
        made = self._job["metadata"]
        return self._events.last(REFUSED, made["uid"], made["name"]) or "its Job has no pod yet"

    def _expire(self, job: Any) -> None:
        """Delete the Job once nobody has used it for a while."""
        while True:
            time.sleep(1.0)
            with self._lock:
                if self._job is not job:
                    return
                if not self._users and time.monotonic() - self._used > LINGER:
                    self.delete()


def manifest_of(
    settings: Settings, server: Server, store: VolumeStore, image: str, run: str, name: str
) -> dict[str, Any]:
    """The Job; its labels are not those by which a run's own Jobs and pods are selected."""
    labels = {
        manifest.LABEL_MANAGER: f"{manifest.MANAGER}-reader",
        manifest.LABEL_RUN: run,
        READS: name,
    }
    container = {
        "image": image,
        "command": [*DELIVER, "wait", SIGN, str(IDLE)],
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
    }
    mounts = [
        manifest.claimed(store.claim, read_only=True),
        manifest.mounted("tmp", "/tmp", emptyDir={}),  # noqa: S108
    ]
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": MAX_AGE,
        "ttlSecondsAfterFinished": 60,
        "template": manifest.template(settings, server, labels, container, mounts),
    }
    return manifest.job(spec, name=name, namespace=settings.namespace, labels=labels)
