"""Watches: the changes of a resource, as a stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from tests.fake_kubernetes import objects
from tests.fake_kubernetes.objects import ApiError, Matches, Object, Resource
from tests.fake_kubernetes.store import Change, Store

_AT_ONCE = 200


@dataclass(frozen=True)
class Watched:
    """``seconds``: after which the watch ends."""

    resource: Resource
    namespace: str
    matches: Matches
    since: int
    seconds: float
    bookmarks: bool


class Watches:
    """``bookmark``: seconds between bookmarks, for watches that want them."""

    def __init__(self, store: Store, bookmark: float) -> None:
        self._store = store
        self._bookmark = bookmark
        self._open: set[asyncio.Queue[Change | str]] = set()
        self.sent = 0
        """Bytes."""

    def end(self, how: str) -> None:
        """End all that are open: ``expire`` (an ERROR event of code 410), ``close`` or ``cut``."""
        for queue in self._open:
            queue.put_nowait(how)

    async def serve(self, request: web.BaseRequest, watched: Watched) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        queue: asyncio.Queue[Change | str] = asyncio.Queue()
        try:
            changes = self._store.since(watched.since)
            first = [event for change in changes for event in _events(change, watched)]
        except ApiError as error:
            # A real one too has answered 200 by then.
            first = [{"type": "ERROR", "object": error.status}]
            queue.put_nowait("close")
        # No change comes between the history and this: nothing was awaited.
        stop = self._store.listen(queue.put_nowait)
        self._open.add(queue)
        try:
            await response.prepare(request)
            await self._send(response, first)
            await self._follow(request, response, watched, queue)
        finally:
            stop()
            self._open.discard(queue)
        return response

    async def _follow(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        watched: Watched,
        queue: asyncio.Queue[Change | str],
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + watched.seconds
        while (left := end - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(queue.get(), min(left, self._bookmark))
            except asyncio.TimeoutError:
                if watched.bookmarks:
                    await self._send(response, [self._mark(watched)])
                continue
            if isinstance(change, Change):
                events = list(_events(change, watched))
                # What has come meanwhile goes along: one by one, a watch falls behind.
                while len(events) < _AT_ONCE and queue.qsize():
                    change = queue.get_nowait()
                    if not isinstance(change, Change):
                        queue.put_nowait(change)
                        break
                    events += _events(change, watched)
                await self._send(response, events)
                continue
            if change == "expire":
                error = objects.expired(self._store.revision - 1, self._store.revision)
                await self._send(response, [{"type": "ERROR", "object": error.status}])
            elif change == "cut" and request.transport is not None:
                request.transport.abort()
            return

    async def _send(self, response: web.StreamResponse, events: list[Object]) -> None:
        if events:
            text = b"".join(json.dumps(it).encode() + b"\n" for it in events)
            self.sent += len(text)
            await response.write(text)

    def _mark(self, watched: Watched) -> Object:
        metadata = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        kind = {"kind": watched.resource.kind, "apiVersion": watched.resource.api_version}
        return {"type": "BOOKMARK", "object": {**kind, "metadata": metadata}}


def _events(change: Change, watched: Watched) -> Iterator[Object]:
    """An object that begins to match a selector is added to the watch; one that ceases is deleted."""
    if change.resource != watched.resource:
        return
    if watched.namespace not in ("", change.item["metadata"].get("namespace")):
        return
    did = change.before is not None and watched.matches(change.before)
    does = change.kind != "DELETED" and watched.matches(change.item)
    if did or does:
        kind = "MODIFIED" if did and does else "ADDED" if does else "DELETED"
        yield {"type": kind, "object": change.item}
