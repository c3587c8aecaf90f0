"""A small registry that goes wrong when told to: real sockets, the real protocol, no disk.

``with FaultServer() as server:`` is a registry of the distribution API at
``server.address`` that keeps all in memory and notes each request. ``server.on(…)`` makes
the requests that it matches go wrong::

    server.on("PUT", "/manifests/", answer(500), times=2)
    server.on("GET", "/blobs/", cut(after=1000))
    server.on("PATCH", "/uploads/", forget())
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What goes wrong with the requests that match: see the functions that make one."""

    act: Callable[[Handler], bool]
    """Handles the request in its own way; True: it is handled."""
    method: str = ""
    path: re.Pattern[str] = field(default_factory=lambda: re.compile(""))
    left: float = 1
    after: int = 0


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], bool]:
    """Answer this; header names are written with underscores (``Retry_After="1"``)."""

    def act(handler: Handler) -> bool:
        handler.drain()
        handler.reply(status, body, {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return act


def error(status: int, code: str, message: str = "", **headers: str) -> Callable[[Handler], bool]:
    """Answer with the specification's error body."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return answer(status, body, Content_Type="application/json", **headers)


def close() -> Callable[[Handler], bool]:
    """Close the connection with no answer; an upload's bytes are not even read."""

    def act(handler: Handler) -> bool:
        handler.hang_up()
        return True

    return act


def lose_answer() -> Callable[[Handler], bool]:
    """Do what was asked, then close the connection without saying so."""

    def act(handler: Handler) -> bool:
        handler.mute = True
        return False

    return act


def cut(after: int) -> Callable[[Handler], bool]:
    """Take (of an upload) or send (of a download) so many bytes, then close the connection."""

    def act(handler: Handler) -> bool:
        handler.cut = after
        return False

    return act


def forget(honest: bool = False) -> Callable[[Handler], bool]:
    """Throw an upload's bytes away and say that all is well, or (``honest``) that nothing came."""

    def act(handler: Handler) -> bool:
        handler.forgets, handler.honest = True, honest
        return False

    return act


def wait(until: threading.Event) -> Callable[[Handler], bool]:
    """Answer only when the event is set."""

    def act(handler: Handler) -> bool:
        until.wait(60)
        return False

    return act


class FaultServer:
    """The registry, the list of its faults and what it has seen."""

    def __init__(self, tls: tuple[Path, Path] | None = None, host: str = "127.0.0.1") -> None:
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.sessions: dict[str, bytearray] = {}
        self.mounts = True
        self.relative = False
        self.ranges = True
        self.chunk_minimum = 0
        self.auth: Callable[[Handler], bool] = lambda _handler: True
        self.lock = threading.RLock()
        self._server = http.server.ThreadingHTTPServer((host, 0), self._handler())
        self._server.daemon_threads = True
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"
        self._server.handle_error = lambda *_args: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"{host}:{self._server.server_port}"

    def _handler(self) -> type[Handler]:
        return type("Bound", (Handler,), {"owner": self})

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def on(
        self,
        method: str,
        path: str,
        act: Callable[[Handler], bool],
        times: float = 1,
        after: int = 0,
    ) -> None:
        """Requests that match go wrong: so many ``times``, the first ``after`` excepted."""
        self.faults.append(Fault(act, method, re.compile(path), times, after))

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        return [it for it in self.seen if it.method.startswith(method) and path in it.path]

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method not in ("", method) or not fault.path.search(path):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.left > 0:
                    fault.left -= 1
                    return fault
        return None

    def add(self, repository: str, data: bytes) -> str:
        """Put a blob there; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[repository, digest] = data
        return digest


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to a FaultServer."""

    protocol_version = "HTTP/1.1"
    owner: FaultServer
    disable_nagle_algorithm = True

    def log_message(self, *_args: object) -> None:
        pass

    def _any(self) -> None:
        self.mute = self.forgets = self.honest = False
        self.cut: int | None = None
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.owner.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
        fault = self.owner.fault_for(self.command, self.path)
        if fault is not None and fault.act(self):
            return
        if not self.owner.auth(self):
            return
        self._route()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815

    # Answering

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        if self.mute:
            self.hang_up()
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204 and "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None:
            self.wfile.write(body[: self.cut])
            self.hang_up()
            return
        self.wfile.write(body)

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.drain()
        self.reply(status, json.dumps({"errors": [{"code": code}]}).encode(), headers)

    def hang_up(self) -> None:
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def drain(self) -> bytes:
        data = self.rfile.read(self.unread)
        self.unread = 0
        return data

    # The protocol

    def _route(self) -> None:
        parts = urlsplit(self.path)
        match = re.fullmatch(r"/v2/(.+)/(blobs|manifests|tags)/(.*)", parts.path)
        if "/blobs/uploads/" in parts.path:
            repository, _, session = parts.path.removeprefix("/v2/").partition("/blobs/uploads/")
            self._upload(repository, session, parse_qs(parts.query))
        elif match and match.group(2) == "blobs":
            self._blob(match.group(1), match.group(3))
        elif match and match.group(2) == "manifests":
            self._manifest(match.group(1), match.group(3))
        elif match and match.group(3) == "list":
            own = [it for name, it in self.owner.manifests if name == match.group(1)]
            tags = sorted(it for it in own if not it.startswith("sha256:"))
            self.reply(200, json.dumps({"name": match.group(1), "tags": tags}).encode())
        else:
            self.fail(404, "UNSUPPORTED")

    def _blob(self, repository: str, digest: str) -> None:
        data = self.owner.blobs.get((repository, digest))
        if data is None:
            self.fail(404, "BLOB_UNKNOWN")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.owner.ranges:
            start = int(wanted.group(1))
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.reply(206, data[start:], headers)
        elif self.command == "HEAD":
            self.reply(200, b"", {"Content-Length": str(len(data))})
        else:
            self.reply(200, data)

    def _manifest(self, repository: str, reference: str) -> None:
        if self.command == "PUT":
            self._put_manifest(repository, reference)
            return
        found = self.owner.manifests.get((repository, reference))
        if found is None:
            self.fail(404, "MANIFEST_UNKNOWN")
            return
        kind, data = found
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if self.command == "DELETE":
            for key, value in list(self.owner.manifests.items()):
                if key[0] == repository and value == found:
                    del self.owner.manifests[key]
            self.reply(202)
            return
        self.reply(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest})

    def _put_manifest(self, repository: str, reference: str) -> None:
        data = self.drain()
        parsed = json.loads(data)
        for part in [parsed["config"], *parsed["layers"]]:
            if (repository, part["digest"]) not in self.owner.blobs:
                self.fail(404, "MANIFEST_BLOB_UNKNOWN")
                return
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        for name in {reference, digest}:
            kind = self.headers["Content-Type"]
            self.owner.manifests[repository, name] = (kind, data)
        self.reply(201, b"", {"Docker-Content-Digest": digest, "Location": self.path})

    def _upload(self, repository: str, session: str, query: dict[str, list[str]]) -> None:
        if self.command == "POST":
            self._begin(repository, query)
            return
        held = self.owner.sessions.get(session)
        if held is None:
            self.fail(404, "BLOB_UPLOAD_UNKNOWN")
            return
        if self.command == "DELETE":
            del self.owner.sessions[session]
            self.reply(204)
            return
        if self.command in ("PATCH", "PUT") and not self._take(held):
            return
        if self.command == "PUT":
            self._commit(repository, session, query["digest"][0])
            return
        size = len(held)
        if self.forgets and not self.honest:
            size = int(self.headers["Content-Range"].partition("-")[2]) + 1
        headers = {
            "Range": f"0-{max(0, size - 1)}",
            "Location": self._location(repository, session),
        }
        self.reply(202 if self.command == "PATCH" else 204, b"", headers)

    def _begin(self, repository: str, query: dict[str, list[str]]) -> None:
        if "mount" in query and self.owner.mounts:
            data = self.owner.blobs.get((query["from"][0], query["mount"][0]))
            if data is not None:
                self.owner.blobs[repository, query["mount"][0]] = data
                self.reply(201)
                return
        session = uuid.uuid4().hex
        self.owner.sessions[session] = bytearray()
        headers = {"Location": self._location(repository, session), "Range": "0-0"}
        if self.owner.chunk_minimum:
            headers["OCI-Chunk-Min-Length"] = str(self.owner.chunk_minimum)
        self.reply(202, b"", headers)

    def _take(self, held: bytearray) -> bool:
        """Read the body into the session; False if the connection was cut meanwhile."""
        limit = self.unread if self.cut is None else min(self.cut, self.unread)
        offset = self.headers.get("Content-Range", "").partition("-")[0]
        if offset and int(offset) != len(held):
            self.fail(416, "RANGE_INVALID")
            return False
        while limit:
            data = self.rfile.read(min(limit, 1 << 16))
            if not data:
                break
            limit -= len(data)
            self.unread -= len(data)
            if not self.forgets:
                held += data
        if self.cut is not None:
            self.hang_up()
            return False
        return True

    def _commit(self, repository: str, session: str, digest: str) -> None:
        data = bytes(self.owner.sessions.pop(session))
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            self.fail(400, "DIGEST_INVALID")
            return
        self.owner.blobs[repository, digest] = data
        self.reply(201, b"", {"Docker-Content-Digest": digest})

    def _location(self, repository: str, session: str) -> str:
        # The query must come back as it is, as some registries keep their state in it.
        path = f"/v2/{repository}/blobs/uploads/{session}?_state=a%2Fb%3D%3D"
        return path if self.owner.relative else f"{self.owner.url}{path}"
