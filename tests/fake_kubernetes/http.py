"""The HTTP side: which request it is, the fault that it meets, and the response."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fake_kubernetes import execute, objects
from tests.fake_kubernetes.api import Api
from tests.fake_kubernetes.faults import Fault, Request, Requests
from tests.fake_kubernetes.kubelet import Kubelet
from tests.fake_kubernetes.objects import RESOURCES, ApiError, Matches, Object, Resource
from tests.fake_kubernetes.schema import VERSION
from tests.fake_kubernetes.store import Key
from tests.fake_kubernetes.watch import Watched, Watches

_PATH = re.compile(
    r"^/(?:api|apis)/(?P<version>v1|[^/]+/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<subresource>[a-z]+))?)?$"
)
_METHODS = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
_ACCESS_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_LONGEST_WATCH = 1800


@dataclass(frozen=True)
class Call:
    """A request for a resource."""

    verb: str
    resource: Resource
    namespace: str
    name: str
    subresource: str
    query: Mapping[str, str]

    @property
    def key(self) -> Key:
        return self.resource, self.namespace, self.name

    @property
    def matches(self) -> Matches:
        get = self.query.get
        return objects.selector(get("labelSelector", ""), get("fieldSelector", ""))

    @property
    def counted_as(self) -> str:
        return "/".join(filter(None, (self.resource.plural, self.subresource)))


def _call(request: web.BaseRequest) -> Call:
    match = _PATH.match(request.path)
    resource = RESOURCES.get((match["version"], match["plural"])) if match else None
    if match is None or resource is None or match["subresource"] not in (None, "exec"):
        raise ApiError(404, f"the fake API server has no {request.path}")
    query, name = request.query, match["name"] or ""
    verb = _METHODS.get(request.method, "")
    if verb == "get" and not name:
        verb = "watch" if _flag(query, "watch") else "list"
    elif verb == "delete" and not name:
        verb = "deletecollection"
    space, subresource = match["namespace"] or "", match["subresource"] or ""
    return Call(verb, resource, space, name, subresource, query)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() == "true"


class Handler:
    """Answers requests."""

    def __init__(self, api: Api, kubelet: Kubelet, requests: Requests, watches: Watches) -> None:
        self._api = api
        self._kubelet = kubelet
        self._requests = requests
        self._watches = watches
        self._pages: dict[str, tuple[list[Object], int]] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._handle(request)
        except ApiError as error:
            return web.json_response(error.status, status=error.code, headers=error.headers)
        except ConnectionResetError:
            raise
        except Exception as error:
            about = {"message": f"{request.method} {request.path_qs}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(about)
            raise

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call: Call | None = None
        if request.path.rstrip("/") == "/version":
            verb, resource = "get", "version"
        elif request.path == _ACCESS_REVIEW:
            verb, resource = "create", "selfsubjectaccessreviews"
        else:
            call = _call(request)
            verb, resource = call.verb, call.counted_as
        agent = request.headers.get("User-Agent", "")
        fault = self._requests.count(Request(verb, resource, agent)) or Fault("", "", 0)
        if fault.cut_before:
            _cut(request)
        if fault.error:
            raise fault.error
        response = await self._respond(request, call, body)
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            self._requests.sent[verb] += len(response.body)
        if fault.cut_after:
            _cut(request)
        return response

    async def _respond(
        self, request: web.BaseRequest, call: Call | None, body: bytes
    ) -> web.StreamResponse:
        if call is None:
            if request.path == _ACCESS_REVIEW:
                answer = {**json.loads(body), "status": {"allowed": True}}
                return web.json_response(answer, status=201)
            return web.json_response(_version())
        if call.subresource:
            pod = self._api.store.get(*call.key)
            return await execute.serve(request, self._kubelet.container(pod))
        if call.verb == "watch":
            watched = Watched(
                call.resource,
                call.namespace,
                call.matches,
                since=int(call.query["resourceVersion"]),
                seconds=float(call.query.get("timeoutSeconds", _LONGEST_WATCH)),
                bookmarks=_flag(call.query, "allowWatchBookmarks"),
            )
            return await self._watches.serve(request, watched)
        answer = self._change_or_read(call, body)
        return web.json_response(answer, status=201 if call.verb == "create" else 200)

    def _change_or_read(self, call: Call, body: bytes) -> Any:
        api, policy = self._api, call.query.get("propagationPolicy", "")
        if call.verb == "list":
            return self._list(call)
        if call.verb == "get":
            return api.store.get(*call.key)
        if call.verb == "create":
            dry = call.query.get("dryRun") == "All"
            return api.create(call.resource, call.namespace, json.loads(body), dry)
        if call.verb == "patch":
            return api.patch(call.key, json.loads(body))
        if call.verb == "delete":
            item = api.delete(call.key, policy)
            status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return item if call.resource == objects.PODS else status
        if call.verb == "deletecollection":
            deleted = api.delete_collection(call.resource, call.namespace, call.matches, policy)
            return _listed(call.resource, deleted, {})
        raise ApiError(405, f"the fake API server has no {call.verb or 'such'} request")

    def _list(self, call: Call) -> Object:
        limit, token = int(call.query.get("limit", 0)), call.query.get("continue", "")
        if token:
            items, revision = self._pages.pop(token)
        else:
            items = self._api.store.select(call.resource, call.namespace, call.matches)
            revision = self._api.store.revision
        metadata: Object = {"resourceVersion": str(revision)}
        if limit and len(items) > limit:
            metadata["continue"] = secrets.token_hex(8)
            self._pages[metadata["continue"]] = (items[limit:], revision)
            items = items[:limit]
        return _listed(call.resource, items, metadata)


def _listed(resource: Resource, items: list[Object], metadata: Object) -> Object:
    kind = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
    return {**kind, "metadata": metadata, "items": items}


def _version() -> dict[str, str]:
    major, _, minor = VERSION.partition(".")
    rest = ("gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler")
    return {**dict.fromkeys((*rest, "platform"), "fake"), "major": major, "minor": minor}


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("cut on demand")
