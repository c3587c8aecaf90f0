"""Outcomes out of pods: from a termination message, or from a container that holds its result."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from clustrix_containers.clusters.kubernetes.api import Api
from clustrix_containers.clusters.kubernetes.manifest import ANNOTATION_COMMAND
from clustrix_containers.clusters.kubernetes.pods.views import PodView
from clustrix_containers.clusters.kubernetes.pods.watch import WORKER_MESSAGES
from clustrix_containers.errors import ClusterError
from clustrix_containers.remote.retry import Retry
from clustrix_containers.results import delivery
from clustrix_containers.results.outcome import Expected
from clustrix_containers.worker import contract

from .stream import BrokenOff, Command, command

SILENCE = 60.0
"""Seconds without a byte after which a stream is given up: its node may be gone."""
FAREWELL = 2.0
"""Seconds in which a pod confirms that its result was taken."""
RELEASE = Retry(attempts=12, first=1.0, longest=60.0)
"""How often a pod is released that has not confirmed it: for about eight minutes."""
RESPONSE = 20.0
"""Seconds in which a pod must respond to that."""
AT_EXIT = 10.0
"""Seconds for which the end of this process is put off for pods that are still to be released."""


def message_of(pod: PodView, expected: Expected) -> delivery.Inline | delivery.Stored | None:
    """What a pod's termination message has of the outcome; ``None`` if it is not our worker's.

    ``ResultLost`` if the worker could not deliver it.
    """
    if not (pod.message or "").startswith(WORKER_MESSAGES):
        return None
    return delivery.read_outcome(pod.message or "", expected)


def receive(giver: Command, pod: str, expected: Expected) -> None:
    """Store the outcome that a command in a pod writes.

    ``ClusterError`` if it breaks off, ``delivery.Absent`` if it has none.
    """
    try:
        delivery.receive(giver.output(SILENCE), expected)
    except (BrokenOff, delivery.StreamEnded) as error:
        if giver.stderr.startswith(contract.NO_OUTCOME):
            raise ClusterError(f"the pod {pod} gives no result: {giver.stderr}") from error
        raise ClusterError(
            f"reading the result from the pod {pod} broke off: {giver.stderr or error}",
            temporary=True,
        ) from error


@dataclass(frozen=True, slots=True)
class _Release:
    pod: str
    command: Sequence[str]
    failures: int = 0


class Taker:
    """Takes held results through exec streams, and releases their pods.

    A pod that does not confirm its release is released again in the background, so that nobody
    waits for it: otherwise it keeps its node's resources for the whole of its hold.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Condition()
        self._waiting: list[tuple[float, int, _Release]] = []
        """When, in which order, and what."""
        self._number = itertools.count()
        self._thread: threading.Thread | None = None

    def take(self, pod: PodView, expected: Expected) -> None:
        """Bring the outcome that a pod holds into the run's directory, and release the pod.

        ``ClusterError`` (``temporary``) if that breaks off. Each wait has an end.
        """
        python = self._interpreter(pod)
        place = (contract.RESULTS, str(expected.element), str(expected.attempt))
        words = (python, contract.DELIVER_SCRIPT, "give", *place)
        with command(self._api, pod.name, words) as giver:
            receive(giver, pod.name, expected)
            confirmed = giver.finish(b"taken\n", FAREWELL)
        if not confirmed:
            with self._lock:
                self._put(_Release(pod.name, (python, contract.DELIVER_SCRIPT, "taken", *place), 1))

    def close(self) -> None:
        """Wait for pods that are still to be released, for :data:`AT_EXIT` seconds at most."""
        end = time.monotonic() + AT_EXIT
        with self._lock:
            while self._thread is not None and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)

    def _interpreter(self, pod: PodView) -> str:
        """The image's Python: its Job has the entry point as an annotation."""
        api = self._api
        full = api.call("read a pod", api.core.read_namespaced_pod, pod.name, api.namespace)
        labels = full["metadata"]["labels"]
        name = labels.get("job-name") or labels["batch.kubernetes.io/job-name"]
        job = api.call("read a Job", api.batch.read_namespaced_job, name, api.namespace)
        noted = json.loads(job["metadata"].get("annotations", {}).get(ANNOTATION_COMMAND) or "[]")
        return str(noted[0]) if noted else f"{contract.VENV}/bin/python"

    def _put(self, release: _Release) -> None:
        delay = RELEASE.delay(release.failures, ClusterError("", temporary=True))
        if delay is None:
            return
        heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._number), release))
        self._lock.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="clustrix-release", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                while self._waiting and (left := self._waiting[0][0] - time.monotonic()) > 0:
                    self._lock.wait(left)
                if not self._waiting:
                    self._thread = None
                    self._lock.notify_all()
                    return
                release = heapq.heappop(self._waiting)[2]
            if not self._release(release):
                again = _Release(release.pod, release.command, release.failures + 1)
                with self._lock:
                    self._put(again)

    def _release(self, release: _Release) -> bool:
        """Whether nothing is left to be done."""
        with contextlib.suppress(ClusterError, BrokenOff):
            with command(self._api, release.pod, release.command) as taken:
                for _ in taken.output(RESPONSE, RESPONSE):
                    pass
            if taken.succeeded:
                return True
        return self._has_ended(release.pod)

    def _has_ended(self, pod: str) -> bool:
        api = self._api
        try:
            read = api.core.read_namespaced_pod
            timeout = (RESPONSE, RESPONSE)
            found = api.call(
                "read a pod", read, pod, api.namespace, none=(404,), _request_timeout=timeout
            )
        except ClusterError:
            return False
        return found is None or found["status"].get("phase") in ("Succeeded", "Failed")
