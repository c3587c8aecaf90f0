"""What stands before a service, and goes wrong when told to: real sockets, one request each."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.clusters.relay import copy

Act = Callable[[socket.socket], None]


def answer(status: int, body: bytes = b"", *headers: str) -> Act:
    """Read the request, then answer this."""

    def act(client: socket.socket) -> None:
        read_request(client)
        client.sendall(_answer(status, body, headers))

    return act


def answer_early(status: int, body: bytes = b"", *headers: str) -> Act:
    """Answer before the request's body was read, and close the connection."""

    def act(client: socket.socket) -> None:
        _head(client)
        client.sendall(_answer(status, body, headers))

    return act


def hang_up(client: socket.socket) -> None:
    """Close the connection with no answer."""
    client.recv(1)


def say_nothing(client: socket.socket) -> None:
    """Take it all, and never answer."""
    with contextlib.suppress(OSError):
        while client.recv(1 << 16):
            pass


def read_request(client: socket.socket) -> bytes:
    """A request's head; its body is read and thrown away."""
    head, rest = _head(client)
    found = [it for it in head.split(b"\r\n") if it.lower().startswith(b"content-length:")]
    left = (int(found[0].split(b":")[1]) if found else 0) - len(rest)
    while left > 0:
        data = client.recv(min(left, 1 << 16))
        assert data, "the request ended early"
        left -= len(data)
    return head


def _head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(1 << 12)
        if not more:
            break
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _answer(status: int, body: bytes, headers: tuple[str, ...]) -> bytes:
    lines = (f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


class Front:
    """``with Front("127.0.0.1:5000", act, act) as front``: each act is for one request.

    Requests after those go on to the service; with no service they are answered like the last.
    """

    def __init__(self, target: str, *acts: Act) -> None:
        self._target = target
        self._acts = list(acts)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        """How many connections have come."""

    def then(self, *acts: Act) -> None:
        """What to do with the requests that come next."""
        with self._lock:
            self._acts.extend(acts)

    def __enter__(self) -> Front:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.requests += 1
                keep = not self._target and len(self._acts) == 1
                act = (self._acts[0] if keep else self._acts.pop(0)) if self._acts else self._pass
            threading.Thread(target=self._serve, args=(client, act), daemon=True).start()

    def _serve(self, client: socket.socket, act: Act) -> None:
        with client, contextlib.suppress(OSError):
            act(client)

    def _pass(self, client: socket.socket) -> None:
        host, _, port = self._target.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()
