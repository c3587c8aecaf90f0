"""What etcd is to the API server: objects, one counter of revisions, and a journal to watch.

Everything runs in one event loop, so nothing here is locked. Objects are immutable by
convention: a change is made to a copy, and put back.
"""

from __future__ import annotations

import copy
import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.kubernetes_server import refusals
from tests.kubernetes_server.resources import Object, Resource, now
from tests.kubernetes_server.selectors import Match

Key = tuple[Resource, str, str]
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True)
class Change:
    kind: str
    """``ADDED``, ``MODIFIED`` or ``DELETED``."""
    revision: int
    resource: Resource
    item: Object
    before: Object | None


def suffix() -> str:
    """Five characters, as generated names end in."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(5))


class Store:
    """``window``: how many changes are kept for watches; an older revision is too old."""

    def __init__(self, window: int) -> None:
        self.revision = 1000
        self._oldest = 1000
        self._objects: defaultdict[Resource, dict[Key, Object]] = defaultdict(dict)
        self._journal: deque[Change] = deque(maxlen=window)
        self._dependents: dict[str, set[Key]] = defaultdict(set)
        self._listeners: list[Callable[[Change], None]] = []

    # -- reading

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects[resource].get((resource, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.find(resource, namespace, name)
        if found is None:
            raise refusals.not_found(resource, name)
        return found

    def select(self, resource: Resource, namespace: str, match: Match) -> list[Object]:
        """In the order of namespace and name; all namespaces if none is named."""
        found = [
            (key, item)
            for key, item in self._objects[resource].items()
            if (not namespace or key[1] == namespace) and match(item)
        ]
        return [item for _, item in sorted(found, key=lambda pair: pair[0][1:])]

    def dependents(self, uid: str) -> list[tuple[Key, Object]]:
        """The objects that name ``uid`` as an owner."""
        return [
            (key, self._objects[key[0]][key])
            for key in sorted(self._dependents.get(uid, ()), key=_order)
        ]

    def has_uid(self, resource: Resource, namespace: str, name: str, uid: str) -> bool:
        found = self.find(resource, namespace, name)
        return found is not None and found["metadata"]["uid"] == uid

    # -- watching

    def since(self, revision: int) -> Iterable[Change]:
        """The changes after a revision; :class:`Refused` with 410 if they are not all known."""
        if revision < self._oldest:
            raise refusals.expired(revision, self._oldest)
        return [change for change in self._journal if change.revision > revision]

    def expire(self) -> None:
        """Forget what has changed so far: every revision before now is too old."""
        self._journal.clear()
        self.revision += 1
        self._oldest = self.revision

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call with every change from now on; what is returned ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- writing

    def create(self, resource: Resource, item: Object) -> Object:
        """Put an object that has its name and uid; 409 if there is one of that name."""
        key = self.key(resource, item)
        if key in self._objects[resource]:
            raise refusals.already_exists(resource, key[2])
        self._write("ADDED", key, item, None)
        return item

    def replace(self, resource: Resource, item: Object, dry: bool = False) -> Object:
        """Put a new state of an object; 409 if it names a resource version that is past."""
        key = self.key(resource, item)
        before = self.get(*key)
        old, new = before["metadata"], item["metadata"]
        if new.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise refusals.stale(resource, key[2])
        if new.get("uid") not in (None, old["uid"]):
            why = f"UID in precondition: {new['uid']}, UID in object meta: {old['uid']}"
            raise refusals.Refused(409, f"Precondition failed: {why}")
        kept = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
        fixed = {name: old[name] for name in kept if name in old}
        item = {**item, "metadata": {**new, **fixed, "resourceVersion": old["resourceVersion"]}}
        if item == before or dry:
            return item
        if item.get("spec") != before.get("spec") and "generation" in old:
            item["metadata"]["generation"] = old["generation"] + 1
        self._write("MODIFIED", key, item, before)
        if _may_go(item):
            self._remove(key)
        return item

    def edit(self, key: Key, change: Callable[[Object], None]) -> Object | None:
        """For controllers: change a copy and put it back; ``None`` if the object is gone."""
        found = self.find(*key)
        if found is None:
            return None
        item = copy.deepcopy(found)
        change(item)
        return self.replace(key[0], item)

    def mark_deleted(self, key: Key, grace: int, finalizers: Iterable[str] = ()) -> Object | None:
        """Delete now if nothing holds it (``None``), else say when it is to be gone."""
        before = self.get(*key)
        item = copy.deepcopy(before)
        metadata = item["metadata"]
        if new := [it for it in finalizers if it not in metadata.get("finalizers", ())]:
            metadata["finalizers"] = [*metadata.get("finalizers", ()), *new]
        shorter = grace < metadata.get("deletionGracePeriodSeconds", grace + 1)
        if "deletionTimestamp" not in metadata or shorter:
            metadata.update(deletionTimestamp=now(), deletionGracePeriodSeconds=grace)
        if _may_go(item):
            self._remove(key)
            return None
        if item != before:
            self._write("MODIFIED", key, item, before)
        return item

    def key(self, resource: Resource, item: Object) -> Key:
        metadata = item["metadata"]
        space = metadata.get("namespace", "") if resource.namespaced else ""
        return resource, space, metadata["name"]

    def _remove(self, key: Key) -> None:
        before = self._objects[key[0]][key]
        self._write("DELETED", key, copy.deepcopy(before), before)

    def _write(self, kind: str, key: Key, item: Object, before: Object | None) -> None:
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        for name in ("ownerReferences", "finalizers", "labels", "annotations"):
            if not item["metadata"].get(name, True):
                del item["metadata"][name]
        for owner in (before or {}).get("metadata", {}).get("ownerReferences", ()):
            self._dependents[owner["uid"]].discard(key)
        if kind == "DELETED":
            del self._objects[key[0]][key]
        else:
            self._objects[key[0]][key] = item
            for owner in item["metadata"].get("ownerReferences", ()):
                self._dependents[owner["uid"]].add(key)
        if len(self._journal) == self._journal.maxlen:
            self._oldest = self._journal[0].revision
        change = Change(kind, self.revision, key[0], item, before)
        self._journal.append(change)
        for listener in tuple(self._listeners):
            listener(change)


def _may_go(item: Object) -> bool:
    """Whether nothing holds an object that is being deleted."""
    metadata = item["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    return item.get("kind") != "Pod" or not metadata.get("deletionGracePeriodSeconds")


def _order(key: Key) -> tuple[str, str, str]:
    return key[0].plural, *key[1:]
