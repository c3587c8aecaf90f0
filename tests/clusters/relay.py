"""Carries bytes between a client and a service, and lets a test act at a chosen byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

_CHUNK = 1 << 17
# A service that is started ``with_parent`` ends with the thread that started it: this one stays.
_ACTOR = ThreadPoolExecutor(1)


@dataclass
class _Count:
    bytes: int = 0
    due: list[tuple[int, Callable[[], None]]] = field(default_factory=list)


class Relay:
    """``with Relay("127.0.0.1:5000") as relay:`` reaches that service at ``relay.address``.

    It understands nothing of what it carries, so TLS passes through it unharmed.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._sent = _Count()
        self._received = _Count()
        self._refuse = 0
        self.refused = 0
        """How many connections it has closed at once because of :meth:`refuse`."""
        self.failures: list[BaseException] = []
        """What the tests' own functions raised: a test asserts that there is nothing."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def at(self, sent: int, act: Callable[[], None]) -> None:
        """Call ``act`` once, when clients have sent ``sent`` bytes in all, before the next one."""
        self._sent.due.append((sent, act))

    def at_received(self, received: int, act: Callable[[], None]) -> None:
        """The same with what clients have been sent."""
        self._received.due.append((received, act))

    @property
    def waiting(self) -> int:
        """How many of these functions have not been called yet."""
        return len(self._sent.due) + len(self._received.due)

    def refuse(self, connections: int) -> None:
        """Close this number of the next connections at once, unread."""
        with self._lock:
            self._refuse = connections

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        # Not close alone: it does not wake a thread that is accepting.
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
                refused = self._refuse > 0
                self._refuse -= refused
                self.refused += refused
            if refused:
                client.close()
            else:
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        host, _, port = self._target.rpartition(":")
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port))) as server,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=copy, args=(server, client, self._back), daemon=True)
            back.start()
            copy(client, server, self._forth)
            back.join()

    def _forth(self, size: int) -> None:
        self._count(self._sent, size)

    def _back(self, size: int) -> None:
        self._count(self._received, size)

    def _count(self, count: _Count, size: int) -> None:
        with self._lock:
            count.bytes += size
            due = [it for it in count.due if it[0] <= count.bytes]
            count.due = [it for it in count.due if it not in due]
        for _, act in due:
            self._act(act)

    def _act(self, act: Callable[[], None]) -> None:
        try:
            _ACTOR.submit(act).result()
        except BaseException as error:
            self.failures.append(error)
            raise


def copy(
    source: socket.socket, target: socket.socket, before: Callable[[int], None] | None = None
) -> None:
    """Until ``source`` ends; ``before`` is called with the number of bytes that go on next.

    The end goes on, too; a broken connection, or an OSError of ``before``, ends both.
    """
    buffer = memoryview(bytearray(_CHUNK))
    try:
        while size := source.recv_into(buffer):
            if before is not None:
                before(size)
            target.sendall(buffer[:size])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
