"""What etcd is to an API server: objects, a counter of revisions, and a history to watch.

Everything runs in one event loop, so nothing here is locked. Objects are immutable by
convention: a change is made to a copy, which replaces the object.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tests.fake_kubernetes import objects
from tests.fake_kubernetes.objects import Matches, Object, Resource, now

Key: TypeAlias = tuple[Resource, str, str]
"""Resource, namespace and name."""


@dataclass(frozen=True)
class Change:
    kind: str
    """``ADDED``, ``MODIFIED`` or ``DELETED``."""
    revision: int
    resource: Resource
    item: Object
    before: Object | None


class Store:
    """``history``: how many changes are kept for watches; an older revision is too old."""

    def __init__(self, history: int) -> None:
        self.revision = 1000
        self._oldest = 1000
        self._objects: defaultdict[Resource, dict[Key, Object]] = defaultdict(dict)
        self._history: deque[Change] = deque(maxlen=history)
        self._dependents: defaultdict[str, set[Key]] = defaultdict(set)
        self._listeners: list[Callable[[Change], None]] = []

    def key(self, resource: Resource, item: Object) -> Key:
        metadata = item["metadata"]
        return resource, metadata.get("namespace", ""), metadata["name"]

    # -- reading

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects[resource].get((resource, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.find(resource, namespace, name)
        if found is None:
            raise objects.not_found(resource, name)
        return found

    def select(self, resource: Resource, namespace: str, matches: Matches) -> list[Object]:
        """In the order of namespace and name; of all namespaces if none is named."""
        found = [
            (key[1:], item)
            for key, item in self._objects[resource].items()
            if (not namespace or key[1] == namespace) and matches(item)
        ]
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def dependents(self, uid: str) -> list[tuple[Key, Object]]:
        """The objects that name ``uid`` as an owner."""
        keys = sorted(self._dependents.get(uid, ()), key=lambda it: (it[0].plural, *it[1:]))
        return [(key, self._objects[key[0]][key]) for key in keys]

    # -- watching

    def since(self, revision: int) -> list[Change]:
        """The changes after a revision; :class:`ApiError` with 410 if they are not all known."""
        if revision < self._oldest:
            raise objects.expired(revision, self._oldest)
        return [change for change in self._history if change.revision > revision]

    def expire(self) -> None:
        """Drop the history: every revision before now is too old."""
        self._history.clear()
        self.revision += 1
        self._oldest = self.revision

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call with every change from now on; what is returned ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- writing

    def create(self, resource: Resource, item: Object) -> Object:
        """Add an object that has its name and uid; 409 if there is one of that name."""
        key = self.key(resource, item)
        if key in self._objects[resource]:
            raise objects.already_exists(resource, key[2])
        self._write("ADDED", key, item, None)
        return item

    def edit(self, key: Key, change: Callable[[Object], None]) -> Object | None:
        """Change a copy and store that; ``None`` if there is no such object."""
        before = self.find(*key)
        if before is None:
            return None
        item = copy.deepcopy(before)
        change(item)
        if item != before:
            self._write("MODIFIED", key, item, before)
            if _removable(item):
                self._remove(key)
        return item

    def remove_finalizer(self, key: Key, finalizer: str) -> None:
        def change(item: Object) -> None:
            finalizers = item["metadata"].get("finalizers", [])
            item["metadata"]["finalizers"] = [it for it in finalizers if it != finalizer]

        found = self.find(*key)
        if found and finalizer in found["metadata"].get("finalizers", ()):
            self.edit(key, change)

    def delete(self, key: Key, grace: int) -> None:
        """Remove an object, or mark it as deleted while it has finalizers or ``grace`` seconds."""

        def change(item: Object) -> None:
            metadata = item["metadata"]
            before = metadata.get("deletionGracePeriodSeconds", grace + 1)
            metadata.setdefault("deletionTimestamp", now())
            metadata["deletionGracePeriodSeconds"] = min(grace, before)

        before = self.get(*key)
        marked = {**before, "metadata": dict(before["metadata"])}
        change(marked)
        if _removable(marked):
            self._remove(key)
        else:
            self.edit(key, change)

    def _remove(self, key: Key) -> None:
        before = self._objects[key[0]][key]
        self._write("DELETED", key, copy.deepcopy(before), before)

    def _write(self, kind: str, key: Key, item: Object, before: Object | None) -> None:
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        for owner in (before or {}).get("metadata", {}).get("ownerReferences", ()):
            self._dependents[owner["uid"]].discard(key)
        if kind == "DELETED":
            del self._objects[key[0]][key]
        else:
            self._objects[key[0]][key] = item
            for owner in item["metadata"].get("ownerReferences", ()):
                self._dependents[owner["uid"]].add(key)
        if len(self._history) == self._history.maxlen:
            self._oldest = self._history[0].revision
        change = Change(kind, self.revision, key[0], item, before)
        self._history.append(change)
        for listener in tuple(self._listeners):
            listener(change)


def _removable(item: Object) -> bool:
    """Whether an object is deleted, and has neither finalizers nor, as a pod, time to end."""
    metadata = item["metadata"]
    if not objects.terminating(item) or metadata.get("finalizers"):
        return False
    return item["kind"] != "Pod" or not metadata["deletionGracePeriodSeconds"]
