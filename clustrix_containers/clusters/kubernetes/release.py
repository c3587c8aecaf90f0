"""Pods that hold a result which is here already, and have not heard so: they are told again.

In the background, so that nobody waits for it: a pod that is never told keeps its node's
resources for the whole of its hold.
"""

from __future__ import annotations

import atexit
import contextlib
import heapq
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from clustrix_containers.errors import ClusterError

from .api import Api
from .stream import BrokenOff, command

TRIES = 12
FIRST, LONGEST = 0.5, 60.0
"""Seconds before the first try, and at most between two: about eight minutes in all."""
ANSWER = 20.0
"""Seconds in which a pod answers."""
AT_EXIT = 10.0
"""Seconds for which the end of this process is put off for those that are still to be told."""


@dataclass(frozen=True, slots=True)
class _Word:
    api: Api
    namespace: str
    pod: str
    words: Sequence[str]


_lock = threading.Condition()
_waiting: list[tuple[float, int, int, _Word]] = []
"""When, in which order, how often tried, and what."""
_number = itertools.count()
_telling: threading.Thread | None = None


def later(api: Api, namespace: str, pod: str, words: Sequence[str]) -> None:
    """Run ``words`` in a pod, again and again for some minutes until that has worked or it is gone."""
    with _lock:
        _put(_Word(api, namespace, pod, words), 0)
        _ensure()


def _put(word: _Word, tried: int) -> None:
    pause = min(LONGEST, FIRST * 2**tried) * random.uniform(0.5, 1.0)  # noqa: S311
    heapq.heappush(_waiting, (time.monotonic() + pause, next(_number), tried, word))
    _lock.notify_all()


def _ensure() -> None:
    global _telling
    if _telling is None:
        _telling = threading.Thread(target=_tell_all, name="clustrix-release", daemon=True)
        _telling.start()


def _tell_all() -> None:
    global _telling
    while True:
        with _lock:
            while _waiting and (left := _waiting[0][0] - time.monotonic()) > 0:
                _lock.wait(left)
            if not _waiting:
                _telling = None
                _lock.notify_all()
                return
            _, _, tried, word = heapq.heappop(_waiting)
        over = _tell(word)
        with _lock:
            if not over and tried + 1 < TRIES:
                _put(word, tried + 1)


def _tell(word: _Word) -> bool:
    """Whether nothing is left to be told."""
    with contextlib.suppress(ClusterError, BrokenOff):
        with command(word.api, word.namespace, word.pod, word.words) as told:
            for _ in told.output(ANSWER, ANSWER):
                pass
        if told.succeeded:
            return True
    return _has_ended(word)


def _has_ended(word: _Word) -> bool:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        pod = word.api.core.read_namespaced_pod(
            word.pod, word.namespace, _request_timeout=(ANSWER, ANSWER)
        )
    except ApiException as error:
        return bool(error.status == 404)
    except (HTTPError, OSError):
        return False
    return pod.status.phase in ("Succeeded", "Failed")


@atexit.register
def _wait() -> None:
    end = time.monotonic() + AT_EXIT
    with _lock:
        while _telling is not None and (left := end - time.monotonic()) > 0:
            _lock.wait(left)
