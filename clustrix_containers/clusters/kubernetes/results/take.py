"""Outcomes out of pods: from a termination message, or from a container that holds its result."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from clustrix_containers.clusters.kubernetes.api import PARALLEL, Api
from clustrix_containers.clusters.kubernetes.pods.views import PodView
from clustrix_containers.clusters.kubernetes.pods.watch import WORKER_MESSAGES
from clustrix_containers.errors import ClusterError
from clustrix_containers.remote.retry import Retry
from clustrix_containers.results import delivery
from clustrix_containers.results.outcome import Expected
from clustrix_containers.worker import contract

from .stream import BrokenOff, Command, deliver

SILENCE = 60.0
"""Seconds without a byte after which a stream is given up: its node may be gone."""
CONFIRM = 2.0
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


def receive(process: Command, pod: str, expected: Expected) -> None:
    """Store the outcome that a command in a pod writes.

    ``ClusterError`` if it breaks off, ``delivery.Absent`` if it has none.
    """
    try:
        delivery.receive(process.output(SILENCE), expected)
    except (BrokenOff, delivery.StreamEnded) as error:
        if process.stderr.startswith(contract.NO_OUTCOME):
            raise ClusterError(f"the pod {pod} has no result: {process.stderr}") from error
        raise ClusterError(
            f"reading the result from the pod {pod} broke off: {process.stderr or error}",
            temporary=True,
        ) from error


class Taker:
    """Takes held results through exec streams, and releases their pods.

    A pod that does not confirm its release is released again in the background, so that nobody
    waits for it: otherwise it keeps its node's resources for the whole of its hold.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changed = threading.Condition()
        self._unreleased = 0
        self._releasing = threading.Semaphore(PARALLEL)

    def take(self, pod: PodView, expected: Expected) -> None:
        """Bring the outcome that a pod holds into the run's directory, and release the pod.

        ``ClusterError`` (``temporary``) if that breaks off. Each wait has an end.
        """
        place = (contract.RESULTS, str(expected.element), str(expected.attempt))
        with deliver(self._api, pod.name, ("give", *place)) as process:
            receive(process, pod.name, expected)
            confirmed = process.finish(b"taken\n", CONFIRM)
        if not confirmed:
            with self._changed:
                self._unreleased += 1
            threading.Thread(
                target=self._release, args=(pod.name, place), name="clustrix-release", daemon=True
            ).start()

    def close(self) -> None:
        """Wait for pods that are still to be released, for :data:`AT_EXIT` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unreleased, AT_EXIT)

    def _release(self, pod: str, place: Sequence[str]) -> None:
        def once() -> None:
            with self._releasing:
                if not self._confirms(pod, place) and not self._has_ended(pod):
                    raise ClusterError(f"the pod {pod} does not respond", temporary=True)

        time.sleep(RELEASE.first)
        with contextlib.suppress(ClusterError):
            RELEASE.run(once)
        with self._changed:
            self._unreleased -= 1
            self._changed.notify_all()

    def _confirms(self, pod: str, place: Sequence[str]) -> bool:
        with contextlib.suppress(ClusterError, BrokenOff):
            with deliver(self._api, pod, ("taken", *place)) as taken:
                for _ in taken.output(RESPONSE, RESPONSE):
                    pass
            return taken.succeeded is True
        return False

    def _has_ended(self, pod: str) -> bool:
        try:
            found = self._api.read("pod", pod, _request_timeout=(RESPONSE, RESPONSE))
        except ClusterError:
            return False
        return found is None or found["status"].get("phase") in ("Succeeded", "Failed")
