"""The HTTP side: who asks, what for, what goes wrong on demand, and the answer."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

from aiohttp import web

from tests.kubernetes_server import routes, streams
from tests.kubernetes_server.admission import Admission
from tests.kubernetes_server.api import Api
from tests.kubernetes_server.disturbances import Disturbance, Disturbances, Request
from tests.kubernetes_server.kubelet import Kubelet
from tests.kubernetes_server.refusals import Refused, expired
from tests.kubernetes_server.resources import Object
from tests.kubernetes_server.routes import Call
from tests.kubernetes_server.watching import Watches

_LARGEST_BODY = 3 << 20
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubject"


class Front:
    """Answers requests. ``token`` is what a bearer may show instead of a client certificate."""

    def __init__(
        self,
        api: Api,
        kubelet: Kubelet,
        admission: Admission,
        disturbances: Disturbances,
        watches: Watches,
        token: str,
    ) -> None:
        self._api = api
        self._kubelet = kubelet
        self._admission = admission
        self._disturbances = disturbances
        self._watches = watches
        self._token = token
        self._connections: set[asyncio.Transport] = set()
        self._pages: dict[str, tuple[list[Object], int]] = {}

    def cut_all(self) -> None:
        """Cut every connection, as when the server is killed."""
        for transport in tuple(self._connections):
            transport.abort()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            self._connections.add(request.transport)
        try:
            return await self._disturbed(request)
        except Refused as refused:
            return web.json_response(refused.status, status=refused.code, headers=refused.headers)
        except ConnectionResetError:
            raise
        except Exception as error:
            about = {"message": f"{request.method} {request.path_qs}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(about)
            raise

    async def _disturbed(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await _body(request)
        path = request.path.rstrip("/")
        call: Call | None = None
        if path == "/version":
            counted = ("get", "version")
        elif path.startswith(_REVIEWS):
            counted = ("create", path.rpartition("/")[2])
        elif found := _discovered(path):
            return found
        else:
            call = routes.understand(request.method, path, request.query)
            counted = (call.verb, call.what)
        agent = request.headers.get("User-Agent", "")
        trouble = self._disturbances.meet(Request(*counted, agent)) or Disturbance("", "", 0)
        if trouble.cut:
            _cut(request)
        if trouble.hang:
            await trouble.hang.wait()
        if trouble.refusal:
            raise trouble.refusal
        user = self._user(request)
        answer = await self._answer(request, call, user, body)
        if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            self._disturbances.sent[counted[0]] += len(answer.body)
        if trouble.lose_reply:
            _cut(request)
        return answer

    def _user(self, request: web.BaseRequest) -> str:
        certificate = request.get_extra_info("peercert")
        if certificate:
            named = [pair for part in certificate["subject"] for pair in part]
            return str(dict(named)["commonName"])
        if secrets.compare_digest(
            request.headers.get("Authorization", ""), f"Bearer {self._token}"
        ):
            return "bearer"
        raise Refused(401, "Unauthorized")

    async def _answer(
        self, request: web.BaseRequest, call: Call | None, user: str, body: bytes
    ) -> web.StreamResponse:
        if request.path.rstrip("/") == "/version":
            return web.json_response(routes.version(self._api.minor))
        if call is None:
            return self._review(request.path, _parse(body))
        self._admission.authorize(
            user, call.verb, call.resource, call.part, call.namespace, call.name
        )
        if call.part in ("log", "exec"):
            return await streams.answer(request, call, self._api.store, self._kubelet)
        if call.verb == "watch":
            return await self._watches.serve(request, call)
        found = self._respond(call, request.content_type, body)
        return web.json_response(found, status=201 if call.verb == "create" else 200)

    def _respond(self, call: Call, kind: str, body: bytes) -> Any:
        api = self._api
        key = (call.resource, call.namespace, call.name)
        if call.verb == "list":
            return self._list(call)
        if call.verb == "get":
            return api.store.get(*key)
        if call.verb == "create" and not call.name:
            return api.create(call.resource, call.namespace, _parse(body), call.dry)
        if call.verb == "update":
            return api.replace(key, _parse(body), call.part, call.dry)
        if call.verb == "patch":
            return api.patch(key, kind, _parse(body), call.part, call.dry)
        options = self._options(call, body)
        if call.verb == "delete":
            return api.delete(key, options, call.dry or options.get("dryRun") == ["All"])
        if call.verb == "deletecollection":
            deleted = api.delete_collection(call.resource, call.namespace, call.match, options)
            return self._listed(call, deleted, {})
        raise Refused(405, "the server does not allow this method on the requested resource")

    def _options(self, call: Call, body: bytes) -> Object:
        options: Object = _parse(body) if body else {}
        if policy := call.query.get("propagationPolicy"):
            options["propagationPolicy"] = policy
        if (grace := call.number("gracePeriodSeconds")) is not None:
            options["gracePeriodSeconds"] = grace
        return options

    def _list(self, call: Call) -> Object:
        limit = call.number("limit") or 0
        token = call.query.get("continue", "")
        if token:
            try:
                items, revision = self._pages.pop(token)
            except KeyError:
                raise expired(0, self._api.store.revision) from None
            self._api.store.since(revision)
        else:
            items = self._api.store.select(call.resource, call.namespace, call.match)
            revision = self._api.store.revision
        metadata: Object = {"resourceVersion": str(revision)}
        if limit and len(items) > limit:
            following = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode()
            self._pages[following] = (items[limit:], revision)
            metadata["continue"] = following
            if not call.query.get("labelSelector") and not call.query.get("fieldSelector"):
                metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        return self._listed(call, items, metadata)

    def _listed(self, call: Call, items: list[Object], metadata: Object) -> Object:
        metadata = {"resourceVersion": str(self._api.store.revision), **metadata}
        kind = f"{call.resource.kind}List"
        return {
            "kind": kind,
            "apiVersion": call.resource.api_version,
            "metadata": metadata,
            "items": items,
        }

    def _review(self, path: str, body: Any) -> web.Response:
        if path.endswith("accessreviews"):
            status = self._admission.access_review(body.get("spec", {}))
        else:
            status = self._admission.rules_review()
        return web.json_response({**body, "status": status}, status=201)


def _discovered(path: str) -> web.Response | None:
    if path in ("/readyz", "/livez", "/healthz"):
        return web.Response(text="ok")
    found = routes.discovery(path)
    return None if found is None else web.json_response(found)


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("cut on demand")


async def _body(request: web.BaseRequest) -> bytes:
    got = bytearray()
    async for chunk in request.content.iter_any():
        got += chunk
        if len(got) > _LARGEST_BODY:
            raise Refused(413, f"Request entity too large: limit is {_LARGEST_BODY}")
    return bytes(got)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Refused(400, f"the object provided is unrecognized: {error}") from None
