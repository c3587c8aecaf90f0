"""A TCP proxy that a test slows down, cuts and heals while connections run through it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

_PIECE = 64 * 1024
_UNDERWAY = 64  # pieces in each direction of a connection
_DELIVERY = 30.0
_T = TypeVar("_T")


@dataclass
class _Weather:
    """How things go at present, for all connections."""

    delay_up: float = 0.0
    delay_down: float = 0.0
    rate: float = 0.0
    left: int | None = None


class Proxy:
    """Passes connections to ``host:port`` of its own on to ``target`` (address, port).

    It runs in a thread of the test, not in a process: it cannot outlive the test, and what a
    function sets is so when it returns. It only waits for sockets, so the test's own work hardly
    holds it up. *Up* is from the client to the target. Used by ``with``.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.target = target
        self.host = host
        # Bound, and never listening: the port stays ours while connections are refused.
        self._claim = _bound(host, 0)
        self.port: int = self._claim.getsockname()[1]
        self.accepted = 0
        """How many connections there have been."""
        self.up = 0
        """How many bytes have been passed on to the target."""
        self.down = 0
        """How many bytes have been passed on to clients."""
        self._weather = _Weather()
        self._serving: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._calm = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.heal()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refuse()
        self.cut()
        asyncio.run_coroutine_threadsafe(self._ended(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._claim.close()

    @property
    def address(self) -> str:
        """``host:port``, where clients connect to."""
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._serving)

    def delay(self, up: float, down: float | None = None) -> None:
        """Delay what comes from now on by some seconds; one number is for both directions.

        It is a long line, not a narrow one: 4 MiB may be underway in each direction.
        """
        later = up if down is None else down
        self._do(self._set(lambda it: it.__dict__.update(delay_up=up, delay_down=later)))

    def limit(self, bytes_per_second: float) -> None:
        """Let no more pass in each direction of each connection; 0 is no limit."""
        self._do(self._set(lambda it: it.__dict__.update(rate=bytes_per_second)))

    def stall(self) -> None:
        """Pass nothing on, and close nothing, like a firewall that has forgotten; until healed."""
        self._do(self._stall())

    def cut(self) -> None:
        """Reset all connections now, on both sides; new ones are taken."""
        self._do(self._cut())

    def cut_after(self, count: int) -> None:
        """Once: pass ``count`` more bytes up, by whichever connections, then cut them all.

        The target's kernel has all of these bytes, and none after them.
        """
        self._do(self._set(lambda it: it.__dict__.update(left=count)))

    def refuse(self) -> None:
        """Take no new connections (ECONNREFUSED); those that are open go on."""
        self._do(self._refuse())

    def heal(self) -> None:
        """Take away all that was set. Connections that were cut stay so."""
        self._do(self._heal())

    def _do(self, act: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(60)

    async def _set(self, change: Callable[[_Weather], None]) -> None:
        change(self._weather)

    async def _stall(self) -> None:
        self._calm.clear()

    async def _heal(self) -> None:
        self._weather = _Weather()
        self._calm.set()
        if self._listener is None:
            self._listener = _bound(self.host, self.port)
            self._listener.listen(100)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _cut(self) -> None:
        await _end(list(self._serving))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            client, _ = listener.accept()
            self.accepted += 1
            task = asyncio.create_task(self._serve(client))
            self._serving.add(task)

            def ended(_: object) -> None:
                self._serving.discard(task)
                client.close()  # it may have been cut before it began

            task.add_done_callback(ended)

    async def _ended(self) -> None:
        """Wait until each connection has closed its sockets."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, client: socket.socket) -> None:
        """One connection, until both sides have closed it or one has reset it."""
        target = socket.socket()
        pumps: list[asyncio.Task[None]] = []
        for it in (client, target):
            it.setblocking(False)
            it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(target, self.target)
            pumps = self._pumps(client, target, up=True) + self._pumps(target, client, up=False)
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            orderly = all(pump.done() and not pump.exception() for pump in pumps)
        except OSError:
            orderly = False
        except asyncio.CancelledError:
            orderly = False
            raise
        finally:
            try:
                await _end(pumps)
            finally:  # whoever cuts while this one ends cancels that, too
                for it in (client, target):
                    if not orderly:
                        linger = struct.pack("ii", 1, 0)
                        it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    it.close()

    def _pumps(
        self, source: socket.socket, sink: socket.socket, *, up: bool
    ) -> list[asyncio.Task[None]]:
        """One direction: what reads, and what writes when it is time to."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDERWAY)

        async def read() -> None:
            data = b"start"
            while data:
                data = await self._loop.sock_recv(source, _PIECE)
                late = self._weather.delay_up if up else self._weather.delay_down
                await queue.put((self._loop.time() + late, data))

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._calm.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                while data:
                    data = await self._pass(data, sink, up=up)

        return [asyncio.create_task(read()), asyncio.create_task(write())]

    async def _pass(self, data: bytes, sink: socket.socket, *, up: bool) -> bytes:
        """Pass on as much as may be at once; what remains."""
        rate = self._weather.rate
        size = len(data) if not rate else max(1, min(len(data), int(rate / 20)))
        if up and self._weather.left is not None:
            size = min(size, self._weather.left)
            self._weather.left -= size
        await self._loop.sock_sendall(sink, data[:size])
        if up:
            self.up += size
        else:
            self.down += size
        if up and self._weather.left == 0:
            self._weather.left = None
            await self._delivered(sink)
            self._cutting = asyncio.create_task(self._cut())
            await asyncio.Event().wait()  # for its own end
        if rate:
            await asyncio.sleep(size / rate)
        await self._calm.wait()
        return data[size:]

    async def _delivered(self, sink: socket.socket) -> None:
        """Wait until the other kernel has what was sent: a reset would throw it away here."""
        end = self._loop.time() + _DELIVERY
        while self._loop.time() < end:
            (waiting,) = struct.unpack("i", fcntl.ioctl(sink, termios.TIOCOUTQ, b"\0" * 4))
            if not waiting:
                return
            await asyncio.sleep(0.005)


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.setblocking(False)
    return made


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
