"""``pods/log`` and ``pods/exec``: what comes out of a container while it runs."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Iterator

from aiohttp import WSMsgType, web

from tests.kubernetes_server.container import Log, Running
from tests.kubernetes_server.kubelet import Kubelet, NoContainer
from tests.kubernetes_server.refusals import Refused
from tests.kubernetes_server.resources import PODS, Object, moment
from tests.kubernetes_server.routes import Call
from tests.kubernetes_server.store import Store

STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
_V4, _V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


async def answer(
    request: web.BaseRequest, call: Call, store: Store, kubelet: Kubelet
) -> web.StreamResponse:
    pod = store.get(PODS, call.namespace, call.name)
    name = _container_name(pod, call.query.get("container", ""))
    try:
        if call.part == "log":
            return await _log(request, call, kubelet.log(pod, name))
        return await _exec(request, kubelet.running(pod, name))
    except NoContainer as error:
        if call.part == "exec":
            # The kubelet's own words, passed on as they are.
            return web.Response(text=str(error), status=error.code)
        raise Refused(error.code, str(error)) from None


def _container_name(pod: Object, asked: str) -> str:
    names = [it["name"] for it in pod["spec"]["containers"]]
    pod_name = pod["metadata"]["name"]
    if not asked and len(names) > 1:
        raise Refused(
            400,
            f"a container name must be specified for pod {pod_name}, choose one of: [{' '.join(names)}]",
        )
    if asked and asked not in names:
        raise Refused(400, f"container {asked} is not valid for pod {pod_name}")
    return asked or str(names[0])


async def _log(request: web.BaseRequest, call: Call, log: Log) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    done = _first(call, log)
    stamps, left = call.flag("timestamps"), call.number("limitBytes")
    since = _since(call)
    await response.prepare(request)
    while True:
        chunk = b"".join(_shown(log, done, since, stamps))
        done = len(log.lines)
        if left is not None:
            chunk = chunk[:left]
            left -= len(chunk)
        if chunk:
            await response.write(chunk)
        if (log.ended and done == len(log.lines)) or not call.flag("follow") or left == 0:
            return response
        await log.grows()


def _since(call: Call) -> datetime.datetime | None:
    if seconds := call.number("sinceSeconds"):
        return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=seconds)
    # The whole second counts: the time in a query has no more.
    return moment(call.query["sinceTime"]) if "sinceTime" in call.query else None


def _first(call: Call, log: Log) -> int:
    tail = call.number("tailLines")
    return 0 if tail is None else max(0, len(log.lines) - tail)


def _shown(log: Log, first: int, since: datetime.datetime | None, stamps: bool) -> Iterator[bytes]:
    for at, line in log.lines[first:]:
        if since is None or at >= since:
            yield (at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ").encode() if stamps else b"") + line


async def _exec(request: web.BaseRequest, container: Running) -> web.StreamResponse:
    command = request.query.getall("command", [])
    if not command:
        raise Refused(400, "you must specify at least 1 container, 1 of stdin, stdout, stderr")
    socket = web.WebSocketResponse(protocols=(_V5, _V4), max_msg_size=0)
    await socket.prepare(request)
    wants_input = request.query.get("stdin", "").lower() in ("1", "t", "true")
    process = await container.execute(command, wants_input)
    assert process.stdout and process.stderr
    # An empty message says that the stream is there.
    await socket.send_bytes(bytes([STDOUT]))
    reader = asyncio.create_task(_feed(socket, process))
    try:
        await asyncio.gather(
            _forward(socket, STDOUT, process.stdout), _forward(socket, STDERR, process.stderr)
        )
        status = _exit_status(await process.wait(), command[0])
        await socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
        await socket.close()
    except ConnectionResetError:
        # The client has gone; what it started goes on, and its output goes nowhere.
        pass
    finally:
        reader.cancel()
    return socket


async def _forward(
    socket: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader
) -> None:
    while chunk := await stream.read(1 << 15):
        await socket.send_bytes(bytes([channel]) + chunk)


async def _feed(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    """Give the process what the client sends, until the client closes that channel (v5)."""
    async for message in socket:
        data = message.data if message.type == WSMsgType.BINARY else str(message.data).encode()
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT) or not data or not process.stdin:
            continue
        if data[0] == STDIN:
            process.stdin.write(data[1:])
            await process.stdin.drain()
        elif data[0] == CLOSE and data[1:2] == bytes([STDIN]):
            process.stdin.close()


def _exit_status(code: int, program: str) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    if code == 127:
        # nsenter's own word for it.
        return {
            "metadata": {},
            "status": "Failure",
            "message": f'command terminated with exit code 127: exec: "{program}"',
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "127"}]},
        }
    number = code if code >= 0 else 128 - code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {number}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(number)}]},
    }
