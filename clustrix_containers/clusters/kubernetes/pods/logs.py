"""An element's output, no line lost or twice, over whatever happens to the connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from clustrix_containers.clusters.kubernetes.api import Api, lines
from clustrix_containers.clusters.kubernetes.manifest import CONTAINER
from clustrix_containers.errors import ClusterError

from .views import PodView

SILENCE = 60.0
"""Seconds without a line after which a log is requested again."""
PATIENCE = 900.0
"""Seconds without a response after which a log is followed no further."""


def read(
    api: Api, find: Callable[[], tuple[PodView | None, bool]], *, follow: bool
) -> Iterator[bytes]:
    """The lines of the pod that ``find`` gives with whether the element has ended.

    With ``follow`` from its start to its end, and then those of the pod that takes its place; else
    what there is now. For an API server that cannot be reached it waits :data:`PATIENCE`.
    """
    seen: dict[str, _Position] = {}
    pause, reached = 0.05, time.monotonic()
    while True:
        over = False
        try:
            pod, over = find()
            if pod is not None and (pod.started or pod.ended):
                own = seen.setdefault(pod.uid, _Position())
                for line in _read(api, pod, own, follow and not pod.ended):
                    pause = 0.05
                    yield line
            reached = time.monotonic()
        except ClusterError as error:
            passing = follow and not over and error.fields.get("temporary")
            if not passing or time.monotonic() - reached > PATIENCE:
                raise
        # Over before this reading began: nothing more can come, of no other pod either.
        if over or not follow:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 2.0)


class _Position:
    """How far a log has been read: to a time, and how many lines of that very time."""

    def __init__(self) -> None:
        self.stamp = ""
        self.count = 0
        self._last = ("", 0)

    def restart(self) -> None:
        self._last = ("", 0)

    def is_new(self, stamp: str) -> bool:
        """Whether a line of this time has not been seen; they come in order."""
        last, number = self._last
        self._last = (stamp, number + 1 if stamp == last else 1)
        if self._last <= (self.stamp, self.count):
            return False
        self.stamp, self.count = self._last
        return True


def _read(api: Api, pod: PodView, seen: _Position, stay: bool) -> Iterator[bytes]:
    options: dict[str, Any] = {"container": CONTAINER, "timestamps": True, "follow": stay}
    if seen.stamp:
        # Whole seconds, and the line itself once more: what was read before is dropped here.
        options["since_seconds"] = _age(seen.stamp)
    seen.restart()
    try:
        response = api.call(
            "read the log",
            api.core.read_namespaced_pod_log,
            pod.name,
            api.namespace,
            stream=True,
            # Reconnected where it was: a node that is gone ends no connection.
            _request_timeout=(10, SILENCE if stay else 60),
            # Whoever follows it tries again: another pod may have taken the place of one whose
            # node does not respond.
            none=(400, 404, *((500, 502, 503, 504) if stay else ())),
            **options,
        )
        if response is None:
            return
        # What breaks off in a line comes once more; at the end nothing does, and all is read.
        for line in lines(response, whole=stay):
            stamp, _, text = line.partition(b" ")
            # A kubelet may send, instead of the log and without a time, that it cannot give it.
            if stamp[:1].isdigit() and seen.is_new(_comparable(stamp.decode("ascii", "replace"))):
                yield text
    except ClusterError:
        raise
    except Exception as error:
        # Broken off: the caller looks again.
        if not stay:
            raise ClusterError(f"the log of {pod.name} cannot be read: {error}") from error


def _comparable(stamp: str) -> str:
    """Nanoseconds are written without trailing zeros: with them, text order is time order."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return f"{whole}.{fraction.ljust(9, '0')}Z"


def _age(stamp: str) -> int:
    then = datetime.fromisoformat(stamp[:19]).replace(tzinfo=timezone.utc)
    return max(1, int((datetime.now(timezone.utc) - then).total_seconds()) + 5)
