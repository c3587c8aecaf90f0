"""Connections that note what goes over them: requests, bytes, and how many trips in a row."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import urllib3


@dataclass(frozen=True)
class Noted:
    """One request: the thread that waited for it, and the bytes of its body."""

    method: str
    url: str
    thread: str
    sent: int


class CountingPool(urllib3.PoolManager):
    """A real pool of connections, ``distance`` seconds away, that lists its requests."""

    def __init__(self, distance: float = 0.0, **options: Any) -> None:
        super().__init__(maxsize=16, retries=False, **options)
        self.noted: list[Noted] = []
        self._distance = distance

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **options: Any
    ) -> Any:
        headers, body = options.get("headers") or {}, options.get("body")
        sent = len(body) if isinstance(body, bytes) else int(headers.get("Content-Length", 0))
        self.noted.append(Noted(method, url, threading.current_thread().name, sent))
        time.sleep(self._distance)
        return super().urlopen(method, url, redirect, **options)

    @property
    def methods(self) -> list[str]:
        return sorted(it.method for it in self.noted)

    @property
    def trips(self) -> int:
        """How many requests waited for the one before: the most of any thread, and then the main one's.

        Only with a ``distance``: on the loopback one thread is back before the next begins.
        """
        by_thread = Counter(it.thread for it in self.noted)
        own = by_thread.pop(threading.current_thread().name, 0)
        return max(by_thread.values(), default=0) + own
