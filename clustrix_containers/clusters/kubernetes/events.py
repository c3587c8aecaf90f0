"""What the cluster says of objects that get nowhere: its events, asked for them all at once.

https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

from __future__ import annotations

import threading
import time

from clustrix_containers.errors import ClusterError

from .api import Api, body

EVERY = 15.0
"""Seconds for which the last answer is good enough."""
MOST = 500
_EMPTY = ("", "Error: ErrImagePull", "Error: ImagePullBackOff")
"""What a kubelet says in the same second as the registry's words."""


class Events:
    """The events of one reason about one kind of object in a namespace."""

    def __init__(self, api: Api, namespace: str, kind: str, reason: str) -> None:
        self._api, self._namespace = api, namespace
        self._selector = f"involvedObject.kind={kind},reason={reason}"
        self._lock = threading.Lock()
        self._asked: float | None = None
        self._said: dict[str, str] = {}

    def of(self, uid: str, name: str) -> str:
        """The last of them about an object; ``""`` for none, or where none may be read.

        Some controllers give no uid of it.
        """
        with self._lock:
            if self._asked is None or time.monotonic() - self._asked > EVERY:
                self._said = self._list()
                self._asked = time.monotonic()
            return self._said.get(uid) or self._said.get(name) or ""

    def _list(self) -> dict[str, str]:
        try:
            answer = body(
                self._api.call(
                    "list events",
                    self._api.core.list_namespaced_event,
                    self._namespace,
                    field_selector=self._selector,
                    limit=MOST,
                    _preload_content=False,
                )
            )
        except ClusterError:
            # They only explain: without them the state is the same.
            return self._said
        found = sorted(answer["items"], key=lambda it: it.get("lastTimestamp") or "")
        said = {}
        for event in found:
            about = event["involvedObject"]
            if event.get("message", "") not in _EMPTY:
                said[about.get("uid") or about.get("name", "")] = event.get("message", "")
        return said
