"""What a request does to the store: names, defaults, validation, admission, then the change.

Requests over HTTP and the controllers go through the same functions.
"""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

from tests.kubernetes_server import defaults, refusals, schema
from tests.kubernetes_server.admission import Admission
from tests.kubernetes_server.collector import Collector
from tests.kubernetes_server.patches import patch
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import (
    EVENTS,
    JOBS,
    NAMESPACES,
    PODS,
    RESOURCES,
    Object,
    Resource,
    now,
)
from tests.kubernetes_server.selectors import Match
from tests.kubernetes_server.store import Key, Store, suffix

_LARGEST = 1536 << 10


class Api:
    """``minor``: the version 1.x that the server plays."""

    def __init__(
        self, store: Store, collector: Collector, admission: Admission, minor: int
    ) -> None:
        self.store = store
        self.minor = minor
        self._collector = collector
        self._admission = admission

    def create(self, resource: Resource, namespace: str, body: Any, dry: bool = False) -> Object:
        schema.check(resource, body)
        item = copy.deepcopy(schema.without_nulls(body))
        metadata = item.setdefault("metadata", {})
        if resource.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise Refused(
                    400,
                    "the namespace of the provided object does not match the namespace sent on the"
                    " request",
                )
            self.store.get(NAMESPACES, "", namespace)
        if resource in (JOBS, PODS):
            item.setdefault("spec", {})
        defaults.drop_unknown(resource, item, self.minor)
        defaults.validate(resource, item)
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + suffix()
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now())
        if resource in (JOBS, PODS):
            metadata["generation"] = 1
        item = {"kind": resource.kind, "apiVersion": resource.api_version, **item}
        defaults.fill(resource, item, self.minor)
        self._admission.admit(resource, item)
        _check_size(item)
        if not dry:
            return self.store.create(resource, item)
        if self.store.find(*self.store.key(resource, item)):
            raise refusals.already_exists(resource, metadata["name"])
        return item

    def replace(self, key: Key, body: Any, part: str = "", dry: bool = False) -> Object:
        """PUT: ``part`` is ``status``, or nothing for all but the status."""
        resource = key[0]
        schema.check(resource, body)
        new = schema.without_nulls(body)
        named = new.get("metadata", {}).get("name", key[2])
        if named != key[2]:
            raise Refused(
                400,
                f"the name of the object ({named}) does not match the name on the URL ({key[2]})",
            )
        return self._put(key, self.store.get(*key), new, part, dry)

    def patch(self, key: Key, kind: str, change: Any, part: str = "", dry: bool = False) -> Object:
        old = self.store.get(*key)
        new = patch(old, kind, change)
        schema.check(key[0], new)
        return self._put(key, old, schema.without_nulls(new), part, dry)

    def _put(self, key: Key, old: Object, new: Object, part: str, dry: bool) -> Object:
        new = copy.deepcopy(new)
        metadata = {**new["metadata"], "name": key[2]}
        if key[0].namespaced:
            metadata["namespace"] = key[1]
        if part == "status":
            kept = {name: value for name, value in old.items() if name != "status"}
            new = {
                **kept,
                "metadata": {**old["metadata"], **_version(metadata)},
                "status": new.get("status", {}),
            }
        else:
            new["metadata"] = metadata
            if "status" in old:
                new["status"] = old["status"]
            defaults.drop_unknown(key[0], new, self.minor)
            defaults.immutable(key[0], new, old)
            defaults.validate(key[0], new)
        _check_size(new)
        return self.store.replace(key[0], new, dry)

    def delete(self, key: Key, options: Any, dry: bool = False) -> Object:
        """The object, if something of it is left or it is a pod; else a ``Status``."""
        found = self.store.get(*key)
        if not dry:
            left = self._collector.delete(key, options)
            if key[0] == NAMESPACES:
                self._empty(key[2])
            if left is not None or key[0] == PODS:
                return left or found
        details = {"name": key[2], "kind": key[0].plural, "uid": found["metadata"]["uid"]}
        if key[0].group:
            details["group"] = key[0].group
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }

    def delete_collection(
        self, resource: Resource, namespace: str, match: Match, options: Any
    ) -> list[Object]:
        found = self.store.select(resource, namespace, match)
        for item in found:
            self.delete(self.store.key(resource, item), options)
        return found

    def _empty(self, namespace: str) -> None:
        for resource in RESOURCES.values():
            if resource.namespaced:
                self.delete_collection(
                    resource, namespace, lambda _: True, {"propagationPolicy": "Background"}
                )

    def event(
        self, item: Object, reason: str, message: str, kind: str = "Normal", source: str = "kubelet"
    ) -> None:
        """Tell of something that happened to an object."""
        metadata = item["metadata"]
        at = now()
        about = {"kind": item["kind"], "apiVersion": item["apiVersion"]}
        about.update(
            {name: metadata[name] for name in ("namespace", "name", "uid") if name in metadata}
        )
        told = {
            "kind": "Event",
            "apiVersion": "v1",
            "metadata": {
                "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
                "namespace": metadata.get("namespace", "default"),
                "uid": str(uuid.uuid4()),
                "creationTimestamp": at,
            },
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": kind,
            "source": {"component": source},
            "reportingComponent": source,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        self.store.create(EVENTS, told)


def _version(metadata: Object) -> Object:
    return {"resourceVersion": metadata["resourceVersion"]} if "resourceVersion" in metadata else {}


def _check_size(item: Object) -> None:
    if len(json.dumps(item)) > _LARGEST:
        raise Refused(500, "etcdserver: request is too large", "InternalError")
