"""When to ask a cluster about a run's elements, and about which."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable


class Ticker:
    """Says when to ask about a run's elements, and about which. Times are in seconds.

    All are asked about after ``shortest`` while something happens, and less and less often, up
    to ``longest``, while nothing does; in between only those that there is news of. Where the
    cluster itself tells of news, asking about all is rarer the more there are: it only finds
    what time alone changes.
    """

    EACH = 0.002
    """Between two questions about all, for each of them: half a per cent of a core."""

    RAREST = 30.0

    def __init__(self, shortest: float, longest: float) -> None:
        self.shortest, self.longest = shortest, longest
        self._now = shortest
        self._asked: float | None = None
        """When all were last asked about, once that is over."""
        self._told = False
        self._lock = threading.Lock()
        self._news: set[int] = set()
        self._all = False
        self._wake = threading.Event()

    def wait(self, count: int, *, changed: bool) -> set[int] | None:
        """Wait; the elements to ask about, of ``count`` that have not ended, or ``None`` for all."""
        self._now = self.shortest if changed else min(self.longest, self._now * 1.4)
        if self._asked is None:
            self._asked = time.monotonic()
        rare = min(self.RAREST, count * self.EACH) if self._told else 0.0
        left = self._asked + max(self._now, rare) - time.monotonic()
        if left > 0 and self._wake.wait(left):
            self._now = self.shortest
            with self._lock:
                self._wake.clear()
                news, self._news, everything, self._all = self._news, set(), self._all, False
            if not everything:
                return news
        self._asked = None
        return None

    def wake(self, elements: Iterable[int] | None = None) -> None:
        """End the present wait: there is news of these elements, or of any."""
        with self._lock:
            if elements is None:
                self._all = True
            else:
                self._news.update(elements)
            self._wake.set()

    def tell(self, elements: Iterable[int] | None) -> None:
        """:meth:`wake`, by the cluster."""
        self._told = True
        self.wake(elements)
