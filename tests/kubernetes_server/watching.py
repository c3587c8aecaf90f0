"""Watches: what has changed, as a stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

from aiohttp import web

from tests.kubernetes_server.refusals import Refused, expired
from tests.kubernetes_server.resources import Object
from tests.kubernetes_server.routes import Call
from tests.kubernetes_server.selectors import Match
from tests.kubernetes_server.store import Change, Store

_LONGEST = 1800


class Watches:
    """``bookmark``: seconds between bookmarks, for those that want them."""

    def __init__(self, store: Store, bookmark: float) -> None:
        self._store = store
        self._bookmark = bookmark
        self._open: set[asyncio.Queue[Change | str]] = set()
        self.sent = 0
        """Bytes."""

    def tell(self, what: str) -> None:
        """``expire`` (an ERROR event with 410, then the end), ``close`` or ``cut``: all that are open."""
        for queue in self._open:
            queue.put_nowait(what)

    @property
    def count(self) -> int:
        return len(self._open)

    async def serve(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        asked = call.query.get("resourceVersion", "")
        queue: asyncio.Queue[Change | str] = asyncio.Queue()
        first: list[Object] = []
        match = call.match
        try:
            if asked in ("", "0"):
                items = self._store.select(call.resource, call.namespace, match)
                first = [{"type": "ADDED", "object": item} for item in items]
            else:
                for change in self._store.since(call.number("resourceVersion") or 0):
                    first.extend(_events(change, call, match))
        except Refused as refused:
            # The real one too has answered 200 by the time that it looks.
            first = [{"type": "ERROR", "object": refused.status}]
            queue.put_nowait("close")
        # No change comes between the look back and this: nothing was awaited.
        stop = self._store.listen(queue.put_nowait)
        self._open.add(queue)
        try:
            await response.prepare(request)
            await self._send(response, first)
            await self._follow(request, response, call, match, queue)
        finally:
            stop()
            self._open.discard(queue)
        return response

    async def _follow(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        call: Call,
        match: Match,
        queue: asyncio.Queue[Change | str],
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + (call.number("timeoutSeconds") or _LONGEST)
        bookmarks = call.flag("allowWatchBookmarks")
        while (left := end - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(queue.get(), min(left, self._bookmark))
            except asyncio.TimeoutError:
                if bookmarks:
                    await self._send(response, [self._mark(call)])
                continue
            if isinstance(change, Change):
                await self._send(response, list(_events(change, call, match)))
            elif change == "expire":
                refused = expired(self._store.revision - 1, self._store.revision)
                await self._send(response, [{"type": "ERROR", "object": refused.status}])
                return
            elif change == "cut" and request.transport is not None:
                request.transport.abort()
                return
            else:
                return

    async def _send(self, response: web.StreamResponse, events: list[Object]) -> None:
        if events:
            text = b"".join(json.dumps(it).encode() + b"\n" for it in events)
            self.sent += len(text)
            await response.write(text)

    def _mark(self, call: Call) -> Object:
        metadata = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        kind = {"kind": call.resource.kind, "apiVersion": call.resource.api_version}
        return {"type": "BOOKMARK", "object": {**kind, "metadata": metadata}}


def _events(change: Change, call: Call, match: Match) -> Iterator[Object]:
    """An object that begins to match a selector is added to the watch; one that ceases is deleted."""
    if change.resource != call.resource:
        return
    if call.namespace and change.item["metadata"].get("namespace") != call.namespace:
        return
    was = change.before is not None and match(change.before)
    matches = change.kind != "DELETED" and match(change.item)
    if was or matches:
        kind = "MODIFIED" if was and matches else "ADDED" if matches else "DELETED"
        yield {"type": kind, "object": change.item}
