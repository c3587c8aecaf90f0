"""What a request does to the store: validation, defaults, the change, and garbage collection.

Requests over HTTP and the Job controller go through the same functions.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import uuid
from typing import Any

from tests.fake_kubernetes import objects, schema
from tests.fake_kubernetes.objects import (
    JOBS,
    NAMESPACES,
    PODS,
    SECRETS,
    ApiError,
    Matches,
    Object,
    Resource,
    now,
)
from tests.fake_kubernetes.store import Change, Key, Store

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MAX_INT32 = (1 << 31) - 1


class Api:
    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop
        store.listen(self._changed)

    def create(self, resource: Resource, namespace: str, body: Any, dry: bool = False) -> Object:
        schema.check(resource, body)
        item = copy.deepcopy(schema.without_nulls(body))
        metadata = item.setdefault("metadata", {})
        if resource.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise ApiError(400, "the namespace of the object does not match that of the URL")
            self.store.get(NAMESPACES, "", namespace)
        if "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + _suffix()
        if resource == JOBS:
            _validate_job(item)
        elif resource == PODS:
            _validate_pod(item["spec"], metadata["name"])
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now())
        item = {"kind": resource.kind, "apiVersion": resource.api_version, **item}
        if resource == JOBS:
            _set_job_defaults(item)
        elif resource == PODS:
            _set_pod_defaults(item["spec"])
            item["status"] = {"phase": "Pending"}
        elif resource == SECRETS:
            item.setdefault("type", "Opaque")
        if not dry:
            return self.store.create(resource, item)
        if self.store.find(*self.store.key(resource, item)):
            raise objects.already_exists(resource, metadata["name"])
        return item

    def patch(self, key: Key, change: Any) -> Object:
        """A merge patch (RFC 7386)."""
        new = _merged(self.store.get(*key), change)
        schema.check(key[0], new)

        def replace(item: Object) -> None:
            item.update(new)

        return self.store.edit(key, replace) or new

    def delete(self, key: Key, policy: str) -> Object:
        """The object as it is then. ``policy``: ``propagationPolicy`` of the request."""
        item = self.store.get(*key)
        if key[0] == JOBS and policy != "Background":
            # Without it a real API server leaves the Job's pods behind.
            raise ApiError(400, "the fake API server has only propagationPolicy=Background")
        self.store.delete(key, _grace(key[0], item))
        return self.store.find(*key) or item

    def delete_collection(
        self, resource: Resource, namespace: str, matches: Matches, policy: str
    ) -> list[Object]:
        found = self.store.select(resource, namespace, matches)
        return [self.delete(self.store.key(resource, item), policy) for item in found]

    def _changed(self, change: Change) -> None:
        """Delete, a moment later, what has lost its owners."""
        if change.kind == "DELETED":
            for key, _ in self.store.dependents(change.item["metadata"]["uid"]):
                self._loop.call_soon(self._collect, key)
        elif change.kind == "ADDED" and change.item["metadata"].get("ownerReferences"):
            self._loop.call_soon(self._collect, self.store.key(change.resource, change.item))

    def _collect(self, key: Key) -> None:
        item = self.store.find(*key)
        if item is None or objects.terminating(item):
            return
        # Nothing but Jobs owns anything here.
        for owner in item["metadata"].get("ownerReferences", ()):
            found = self.store.find(JOBS, key[1], owner["name"])
            if found and found["metadata"]["uid"] == owner["uid"]:
                return
        self.delete(key, "Background")


def _grace(resource: Resource, item: Object) -> int:
    """The seconds that a pod has to end: none if it does not run."""
    if resource != PODS or not item["spec"].get("nodeName") or objects.ended(item):
        return 0
    return int(item["spec"]["terminationGracePeriodSeconds"])


def _suffix() -> str:
    """Five characters, as generated names end in."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(5))


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return copy.deepcopy(new)
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in new.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


# -- validation: what the schema allows and an API server refuses, or this one does not implement


def _validate_job(item: Object) -> None:
    name, spec = item["metadata"]["name"], item["spec"]
    indexed = spec.get("completionMode") == "Indexed"
    wrong = ""
    if indexed and "completions" not in spec:
        wrong = "spec.completions: Required value: when completion mode is Indexed"
    elif indexed and len(f"{name}-{spec['completions'] - 1}") > 63:
        wrong = f'metadata.name: Invalid value: "{name}": no pod can have it and its index as name'
    elif not indexed and spec.get("completions", 1) != 1:
        wrong = "the fake Job controller has several completions only for Indexed Jobs"
    elif "backoffLimitPerIndex" in spec and not indexed:
        wrong = "spec.backoffLimitPerIndex: Invalid value: requires indexed completion mode"
    elif "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        wrong = "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"
    elif any(
        rule["action"] != "Ignore" or "onPodConditions" not in rule
        for rule in spec.get("podFailurePolicy", {}).get("rules", ())
    ):
        wrong = "the fake Job controller has only the action Ignore for onPodConditions"
    if wrong:
        raise ApiError(422, f'Job.batch "{name}" is invalid: {wrong}')
    _validate_pod(spec["template"]["spec"], name)


def _validate_pod(spec: Object, name: str) -> None:
    wrong = ""
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    if spec.get("restartPolicy") != "Never":
        wrong = "restartPolicy: the fake kubelet restarts no containers"
    elif len(spec["containers"]) != 1 or "initContainers" in spec:
        wrong = "containers: the fake kubelet runs one container in a pod"
    for mount in spec["containers"][0].get("volumeMounts", ()):
        if mount["name"] not in volumes:
            wrong = f'containers[0].volumeMounts.name: Not found: "{mount["name"]}"'
    if wrong:
        raise ApiError(422, f'Pod "{name}" is invalid: spec.{wrong}')


# -- defaults


def job_labels(job: Object) -> dict[str, str]:
    """The labels of a Job's pods."""
    metadata = job["metadata"]
    own = {"controller-uid": metadata["uid"], "job-name": metadata["name"]}
    return {**own, **{f"batch.kubernetes.io/{name}": value for name, value in own.items()}}


def _set_job_defaults(item: Object) -> None:
    spec = item["spec"]
    for name, value in (
        ("completionMode", "NonIndexed"),
        ("suspend", False),
        ("completions", 1),
        ("parallelism", 1),
        ("backoffLimit", _MAX_INT32 if "backoffLimitPerIndex" in spec else 6),
        ("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed"),
    ):
        spec.setdefault(name, value)
    labels = job_labels(item)
    uid = "batch.kubernetes.io/controller-uid"
    spec["selector"] = {"matchLabels": {uid: labels[uid]}}
    template = spec["template"].setdefault("metadata", {})
    template["labels"] = {**template.get("labels", {}), **labels}
    _set_pod_defaults(spec["template"]["spec"])
    item["status"] = {}


def _set_pod_defaults(spec: Object) -> None:
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("securityContext", {})
    spec["containers"][0].setdefault("terminationMessagePath", "/dev/termination-log")
