"""The only poller of a cluster in this process: one thread, one batched query for all its runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Cluster
from clustrix_containers.clusters.task import Handle
from clustrix_containers.errors import ClusterError

if TYPE_CHECKING:
    from .watched import WatchedRun


class Ticker:
    """When to query a cluster, and about which elements. Times are in seconds.

    All are queried after ``shortest`` while something happens, and less and less often, up to
    ``longest``, while nothing does; in between only those that there is news of. Where the
    cluster itself notifies, querying all is rarer the more there are: it only finds what time
    alone changes.
    """

    EACH = 0.002
    """Between two queries about all, for each of them: half a per cent of a core."""

    RAREST = 30.0

    DUTY = 4
    """A query is followed by a pause of at least so many times its own duration."""

    def __init__(self, shortest: float, longest: float) -> None:
        self.shortest, self.longest = shortest, longest
        self._now = shortest
        self._queried: float | None = None
        """When all were last queried, once that is over."""
        self._notified = False
        self._news: dict[WatchedRun, set[int] | None] = {}
        self._condition = threading.Condition()

    def wait(
        self, count: int, *, changed: bool, took: float = 0.0
    ) -> dict[WatchedRun, set[int] | None] | None:
        """Wait; what to query, of ``count`` elements that have not ended; ``None`` for all.

        ``took`` is how long the last query took.
        """
        self._now = self.shortest if changed else min(self.longest, self._now * 1.4)
        if self._queried is None:
            self._queried = time.monotonic()
        rare = min(self.RAREST, count * self.EACH) if self._notified else 0.0
        due = self._queried + max(self._now, rare, self.DUTY * took)
        with self._condition:
            self._condition.wait_for(lambda: bool(self._news), max(0.0, due - time.monotonic()))
            if self._news and time.monotonic() < due:
                self._now = self.shortest
                news, self._news = self._news, {}
                return news
            self._news = {}
        self._queried = None
        return None

    def wake(self, run: WatchedRun, elements: Iterable[int] | None = None) -> None:
        """End the present wait: query these elements of a run, or all of them."""
        with self._condition:
            if elements is None:
                self._news[run] = None
            else:
                known = self._news.setdefault(run, set())
                if known is not None:
                    known.update(elements)
            self._condition.notify_all()

    def notify(self, run: WatchedRun, elements: Iterable[int] | None) -> None:
        """:meth:`wake`, by the cluster."""
        self._notified = True
        self.wake(run, elements)


class Poller:
    """Asks one cluster about all the runs that this process watches there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ticker = Ticker(*cluster.poll_interval)
        self._lock = threading.Lock()
        self._runs: dict[WatchedRun, Callable[[], None]] = {}
        """The runs, with what ends each one's subscription."""
        self._thread: threading.Thread | None = None

    def watch(self, run: WatchedRun) -> None:
        """Watch a run until all its elements have ended; returns at once."""
        end = self._cluster.subscribe(run.id, lambda elements: self.ticker.notify(run, elements))
        with self._lock:
            self._runs[run] = end
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._loop, name="clustrix-poller", daemon=True
                )
                self._thread.start()
        self.ticker.wake(run)

    def _loop(self) -> None:
        news: dict[WatchedRun, set[int] | None] | None = None
        while True:
            with self._lock:
                runs = list(self._runs)
                if not runs:
                    self._thread = None
                    return
            chosen = runs if news is None else [run for run in runs if run in news]
            began = time.monotonic()
            try:
                changed = self._poll(chosen, news)
            except Exception as error:
                # A poller that dies in silence would leave every Future waiting for ever.
                for run in chosen:
                    run.give_up(error)
                changed = True
            took = time.monotonic() - began
            for run in [run for run in runs if run.over]:
                with self._lock:
                    end = self._runs.pop(run)
                end()
            count = sum(run.open_count for run in runs)
            news = self.ticker.wait(count, changed=changed, took=took)

    def _poll(self, runs: list[WatchedRun], news: dict[WatchedRun, set[int] | None] | None) -> bool:
        """Query once for all these runs; whether anything changed."""
        handles = {run: run.open_handles(news.get(run) if news else None) for run in runs}
        statuses = self._states([handle for some in handles.values() for handle in some])
        changed = False
        for run, own in handles.items():
            found = {handle: statuses[handle] for handle in own}
            some_only = news is not None and news.get(run) is not None
            if some_only and any(it.cause is Cause.REFUSED for it in found.values()):
                # What one element cannot start, perhaps none can: all are withdrawn together.
                found = self._states(run.open_handles())
            changed |= run.observe(found)
        return changed

    def _states(self, handles: list[Handle]) -> dict[Handle, Status]:
        if not handles:
            return {}
        try:
            found = self._cluster.states(handles)
        except ClusterError as error:
            found = dict.fromkeys(handles, Status(State.UNKNOWN, message=error.message))
        unknown = Status(State.UNKNOWN, message="its cluster does not report it")
        return {handle: found.get(handle, unknown) for handle in handles}


_lock = threading.Lock()
_pollers: dict[Cluster, Poller] = {}


def poller_of(cluster: Cluster) -> Poller:
    """The one poller of a cluster."""
    with _lock:
        if cluster not in _pollers:
            _pollers[cluster] = Poller(cluster)
        return _pollers[cluster]
