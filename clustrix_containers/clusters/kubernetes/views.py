"""What is known of one kind of object: by run and element, so that an element's are found at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from .status import JobView, PodView

Place = tuple[int, "int | None"]
"""Attempt and element."""
V = TypeVar("V", bound="PodView | JobView")


class Views(Generic[V]):
    """Thread-safe. One view per object, which is known by its uid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_run: dict[str, dict[Place, tuple[V, ...]]] = {}
        self._noting: list[set[str]] = []

    def at(self, run: str, place: Place) -> tuple[V, ...]:
        return self._by_run.get(run, {}).get(place, ())

    def of(self, run: str) -> list[V]:
        with self._lock:
            return [view for views in self._by_run.get(run, {}).values() for view in views]

    def same(self, view: V) -> V | None:
        """The view of the same object that is here."""
        known = self.at(view.run, (view.attempt, view.element))
        return next((it for it in known if it.uid == view.uid), None)

    def put(self, view: V) -> None:
        with self._lock:
            self._put(self._by_run, view)
            for noted in self._noting:
                noted.add(view.uid)

    def drop(self, view: V) -> None:
        """Forget an object, and its run with its last one."""
        with self._lock:
            places = self._by_run.get(view.run, {})
            place = view.attempt, view.element
            rest = tuple(it for it in places.get(place, ()) if it.uid != view.uid)
            if rest:
                places[place] = rest
            else:
                places.pop(place, None)
                if not places:
                    self._by_run.pop(view.run, None)

    def change(self, view: V, change: Callable[[V], V]) -> None:
        """Change the view of the same object, if it is (still) here."""
        with self._lock:
            known = self.same(view)
            if known is not None:
                self._put(self._by_run, change(known))

    def fill(self, views: Iterable[V]) -> None:
        """Forget all, and have these instead."""
        found: dict[str, dict[Place, tuple[V, ...]]] = {}
        for view in views:
            self._put(found, view)
        with self._lock:
            self._by_run = found

    def add(self, listing: Callable[[], Iterable[V]]) -> None:
        """Put what ``listing`` gives, but not over what has been put while it was asked."""
        noted: set[str] = set()
        with self._lock:
            self._noting.append(noted)
        try:
            views = list(listing())
        finally:
            with self._lock:
                self._noting.remove(noted)
        with self._lock:
            for view in views:
                if view.uid not in noted:
                    self._put(self._by_run, view)

    @staticmethod
    def _put(by_run: dict[str, dict[Place, tuple[V, ...]]], view: V) -> None:
        places = by_run.setdefault(view.run, {})
        place: Place = (view.attempt, view.element)
        others = [it for it in places.get(place, ()) if it.uid != view.uid]
        places[place] = (*others, view)
