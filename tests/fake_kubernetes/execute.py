"""``pods/exec``: a command in a running container, over a WebSocket.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ (v4.channel.k8s.io)
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import WSMsgType, web

from tests.fake_kubernetes.container import Running
from tests.fake_kubernetes.objects import ApiError, Object

STDIN, STDOUT, STDERR, ERROR = 0, 1, 2, 3


async def serve(request: web.BaseRequest, container: Running | None) -> web.StreamResponse:
    if container is None or not container.running:
        # The kubelet's own words, passed on as they are.
        return web.Response(text='container not found ("main")', status=500)
    command = request.query.getall("command", [])
    if not command:
        raise ApiError(400, "you must specify at least 1 container, 1 of stdin, stdout, stderr")
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
    await socket.prepare(request)
    process = await container.execute(command)
    assert process.stdout and process.stderr
    # An empty message opens the stream, as the kubelet does it.
    await socket.send_bytes(bytes([STDOUT]))
    reader = asyncio.create_task(_read(socket, process))
    try:
        await asyncio.gather(
            _send(socket, STDOUT, process.stdout), _send(socket, STDERR, process.stderr)
        )
        status = _exit_status(await process.wait())
        await socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
        await socket.close()
    except ConnectionResetError:
        # The client has gone; what it started goes on, and its output goes nowhere.
        pass
    finally:
        reader.cancel()
    return socket


async def _send(socket: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader) -> None:
    while chunk := await stream.read(1 << 15):
        await socket.send_bytes(bytes([channel]) + chunk)


async def _read(socket: web.WebSocketResponse, process: asyncio.subprocess.Process) -> None:
    """Give the process what the client sends."""
    async for message in socket:
        data = message.data if message.type == WSMsgType.BINARY else str(message.data).encode()
        if data[:1] == bytes([STDIN]) and process.stdin:
            process.stdin.write(data[1:])
            await process.stdin.drain()


def _exit_status(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    number = str(code if code >= 0 else 128 - code)
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {number}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": number}]},
    }
