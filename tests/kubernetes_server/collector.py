"""Deletion and its consequences: propagation policies and the garbage collector."""

from __future__ import annotations

import asyncio

from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import JOBS, OWNERS, PODS, Object, Resource
from tests.kubernetes_server.store import Change, Key, Store

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_FINALIZERS = {"Foreground": [FOREGROUND], "Orphan": [ORPHAN], "Background": []}


class Collector:
    """Deletes what lost its owners, a moment later, as the controller manager does."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        store.listen(self._changed)

    def delete(self, key: Key, options: Object) -> Object | None:
        """Delete an object as a request with ``DeleteOptions`` says; what is left of it, if anything."""
        item = self._store.get(*key)
        metadata = item["metadata"]
        for name in ("uid", "resourceVersion"):
            wanted = options.get("preconditions", {}).get(name)
            if wanted not in (None, metadata[name]):
                raise Refused(
                    409,
                    f'Operation cannot be fulfilled on {key[0].qualified} "{key[2]}": Precondition'
                    f" failed: {name} in precondition: {wanted}, in object meta: {metadata[name]}",
                )
        # The API group of Jobs keeps this old default; kubectl always says Background.
        default = "Orphan" if key[0] == JOBS else "Background"
        policy = options.get("propagationPolicy") or default
        if options.get("orphanDependents") is not None:
            policy = "Orphan" if options["orphanDependents"] else "Background"
        if policy not in _FINALIZERS:
            raise Refused(
                422,
                f'DeleteOptions "" is invalid: propagationPolicy: Unsupported value: "{policy}"',
            )
        if not self._store.dependents(metadata["uid"]):
            policy = "Background"
        left = self._store.mark_deleted(key, _grace(key[0], item, options), _FINALIZERS[policy])
        if policy == "Orphan":
            self._loop.call_soon(self._orphan, key, metadata["uid"])
        elif policy == "Foreground":
            self._loop.call_soon(self._delete_dependents, metadata["uid"], "Foreground")
        return left

    def _changed(self, change: Change) -> None:
        uid = change.item["metadata"]["uid"]
        if change.kind == "DELETED":
            self._loop.call_soon(self._delete_dependents, uid, "Background")
            for owner in change.item["metadata"].get("ownerReferences", ()):
                self._loop.call_soon(self._foreground_done, change.item, owner)
        elif change.kind == "ADDED" and change.item["metadata"].get("ownerReferences"):
            key = self._store.key(change.resource, change.item)
            self._loop.call_soon(self._adopt_or_delete, key)

    def _adopt_or_delete(self, key: Key) -> None:
        """Delete an object none of whose owners exists; drop the references to those that do not."""
        item = self._store.find(*key)
        if item is None:
            return
        owners = item["metadata"].get("ownerReferences", [])
        living = [it for it in owners if self._lives(key[1], it)]
        if not living:
            self.delete(key, {"propagationPolicy": "Background"})
        elif len(living) < len(owners):
            self._own(key, living)

    def _own(self, key: Key, owners: list[Object]) -> None:
        self._store.edit(key, lambda it: it["metadata"].update(ownerReferences=owners))

    def _lives(self, namespace: str, owner: Object) -> bool:
        resource = OWNERS.get((owner["apiVersion"], owner["kind"]))
        if resource is None:
            return False
        space = namespace if resource.namespaced else ""
        return self._store.has_uid(resource, space, owner["name"], owner["uid"])

    def _delete_dependents(self, uid: str, policy: str) -> None:
        for key, item in self._store.dependents(uid):
            others = [it for it in item["metadata"]["ownerReferences"] if it["uid"] != uid]
            if any(self._lives(key[1], it) for it in others):
                self._own(key, others)
            elif "deletionTimestamp" not in item["metadata"]:
                self.delete(key, {"propagationPolicy": policy})

    def _orphan(self, key: Key, uid: str) -> None:
        for dependent, item in self._store.dependents(uid):
            left = [it for it in item["metadata"]["ownerReferences"] if it["uid"] != uid]
            self._own(dependent, left)
        self._drop(key, ORPHAN)

    def _foreground_done(self, item: Object, owner: Object) -> None:
        resource = OWNERS.get((owner["apiVersion"], owner["kind"]))
        if resource is None or self._store.dependents(owner["uid"]):
            return
        space = item["metadata"].get("namespace", "") if resource.namespaced else ""
        self._drop((resource, space, owner["name"]), FOREGROUND)

    def _drop(self, key: Key, finalizer: str) -> None:
        def change(item: Object) -> None:
            finalizers = item["metadata"].get("finalizers", [])
            item["metadata"]["finalizers"] = [it for it in finalizers if it != finalizer]

        found = self._store.find(*key)
        if found is not None and finalizer in found["metadata"].get("finalizers", ()):
            self._store.edit(key, change)


def _grace(resource: Resource, item: Object, options: Object) -> int:
    """Seconds that a pod has to end; what does not run has none."""
    phase = item.get("status", {}).get("phase")
    if resource != PODS or not item["spec"].get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    asked = options.get("gracePeriodSeconds")
    return int(item["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)
