"""A pod that reads results from a volume claim, for a client that has not mounted it.

It is a Job of the run's own image that sleeps, and reads when it is told to, through exec. One
serves a run and this process. It ends when it has not been used for a while, whoever is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError
from clustrix_containers.results import inline
from clustrix_containers.worker import contract

from . import manifest, take
from .api import Api
from .server import Server
from .settings import Settings, volume
from .status import PodView, view_pod
from .stream import command
from .watch import watcher

IDLE = 120
"""Seconds without use after which the pod ends by itself."""
LINGER = 10.0
"""Seconds without use after which this process deletes it."""
STARTS = 15.0
"""Seconds for which whoever wants something waits for it to start; later, it is asked again."""
STUCK = 30.0
"""Seconds for which nothing comes through before another pod is tried: its node may be gone."""
LONGEST = 86400
"""Seconds that the Job may take in all."""
MOST_FAILURES = 3
"""How many pods in a row may end without having been of use."""
READS = f"{manifest.PREFIX}/reads"
SIGN = "/tmp/used"  # noqa: S108
PYTHON = f"{contract.VENV}/bin/python"


class Reader:
    """At most one Job, made when something is to be read; threads may share it."""

    def __init__(self, api: Api, settings: Settings, image: str, run: str) -> None:
        self._api, self._settings, self._image, self._run = api, settings, image, run
        self._lock = threading.RLock()
        self._job: Any = None
        self._begun = self._used = 0.0
        self._users = self._failures = 0
        self._broken: float | None = None
        """Since when nothing has come through."""

    def take(
        self,
        said: inline.Stored | None,
        element: int,
        attempt: int,
        directory: Path,
        *,
        key: bytes,
    ) -> bool:
        """Bring an outcome into ``directory``; False if it is not to be seen on the volume.

        ``ClusterError`` (``temporary``) while the pod has not started, or if the way broke off.
        """
        place = volume(self._settings.results).directory(manifest.VOLUME_PATH, self._run)
        words = [PYTHON, contract.GIVER, "read", str(place), str(element), str(attempt)]
        words += [said.mark if said is not None else "-", SIGN]
        with (
            self._pod() as pod,
            command(self._api, self._settings.namespace, pod, words) as giver,
        ):
            try:
                take.receive(giver, pod, directory, element, attempt, run=self._run, key=key)
            except inline.Absent:
                return False
        return True

    def delete(self, timeout: float = 10.0) -> None:
        """Delete the Job, if there is one; what it cannot delete ends by itself."""
        # Without the lock: whoever has it may be waiting for long, and this process ends.
        job, self._job = self._job, None
        if job is None:
            return
        with contextlib.suppress(Exception):
            self._api.batch.delete_namespaced_job(
                job.metadata.name,
                self._settings.namespace,
                propagation_policy="Background",
                _request_timeout=timeout,
            )

    @contextlib.contextmanager
    def _pod(self) -> Iterator[str]:
        """The name of a pod that runs, for as long as it is needed."""
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
                if self._failures >= MOST_FAILURES:
                    raise self._problem("ends at once", pod)
                self._make()
            elif pod is not None and pod.started:
                return pod.name
            if time.monotonic() - self._begun > STARTS:
                raise self._problem("does not start", pod, temporary=True)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _make(self) -> None:
        from kubernetes.client import ApiException

        api, namespace = self._api, self._settings.namespace
        name = f"{self._run}-reads-{secrets.token_hex(3)}"
        job = manifest_of(self._settings, api.server, self._image, self._run, name)
        action = f"make the Job {name}"
        try:
            made = api.call(action, api.batch.create_namespaced_job, namespace, job, final=(409,))
        except ApiException:
            # The answer to an earlier try was lost.
            made = api.call(action, api.batch.read_namespaced_job, name, namespace)
        self._job = made
        self._begun = time.monotonic()
        threading.Thread(target=self._expire, args=(self._job,), daemon=True, name=name).start()

    def _look(self) -> PodView | None:
        name = self._job.metadata.name
        listed = self._api.call(
            "list pods",
            self._api.core.list_namespaced_pod,
            self._settings.namespace,
            label_selector=f"{READS}={name}",
        )
        found = [view_pod(self._api.plain(pod)) for pod in listed.items]
        return max(found, key=lambda pod: pod.created, default=None)

    def _is_over(self, pod: PodView | None) -> bool:
        """Whether nothing can be read any more: it was idle, or somebody has ended it."""
        from kubernetes.client import ApiException

        if pod is not None:
            return pod.ended or pod.deleted
        api, name = self._api, self._job.metadata.name
        action, function = f"read the Job {name}", api.batch.read_namespaced_job
        try:
            api.call(action, function, name, self._settings.namespace, final=(404,))
        except ApiException:
            return True
        return False

    def _drop(self, *, useful: bool = False) -> None:
        """Give the Job up; the next one may do better."""
        self.delete()
        self._broken = None
        self._failures += not useful

    def _problem(self, what: str, pod: PodView | None, **fields: Any) -> ClusterError:
        claim = self._settings.claim
        return ClusterError(
            f"the pod that reads results from the volume claim {claim} {what}: {self._why(pod)}",
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
        refusals = watcher(self._api, self._settings.namespace).refusals
        return (
            refusals.of(self._job.metadata.uid, self._job.metadata.name)
            or "its Job has made no pod yet"
        )

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
    settings: Settings, server: Server, image: str, run: str, name: str
) -> dict[str, Any]:
    """The Job: nothing that looks for a run's Jobs or pods takes it for one."""
    labels = {
        manifest.LABEL_MANAGER: f"{manifest.MANAGER}-reader",
        manifest.LABEL_RUN: run,
        READS: name,
    }
    container = {
        "name": manifest.CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PYTHON, contract.GIVER, "wait", SIGN, str(IDLE)],
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
        "securityContext": manifest.CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": manifest.CLAIM, "mountPath": manifest.VOLUME_PATH, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    assert settings.claim is not None
    volumes = [manifest.claimed(settings.claim), {"name": "tmp", "emptyDir": {}}]
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": LONGEST,
        "ttlSecondsAfterFinished": 60,
        "template": manifest.template(settings, server, labels, container, volumes),
    }
    metadata = {"name": name, "namespace": settings.namespace, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


_readers: dict[tuple[int, str, str], Reader] = {}
_lock = threading.Lock()


def of(api: Api, settings: Settings, image: str, run: str) -> Reader:
    """The one reader of a run in this process."""
    with _lock:
        key = (id(api), settings.namespace, run)
        if key not in _readers:
            _readers[key] = Reader(api, settings, image, run)
        return _readers[key]


@atexit.register
def _delete_all() -> None:
    for reader in list(_readers.values()):
        reader.delete(timeout=3.0)
