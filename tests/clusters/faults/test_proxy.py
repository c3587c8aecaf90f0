"""The proxy's faults, on real sockets."""

from __future__ import annotations

import gc
import hashlib
import socket
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from tests.clusters.daemon import wait_until
from tests.clusters.faults.proxy import Proxy


class Echo:
    """Sends back what it gets, and remembers it; one connection after the other."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.got = bytearray()
        self.resets = 0
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while data := connection.recv(65536):
                        self.got += data
                        connection.sendall(data)
                except ConnectionError:
                    self.resets += 1

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.listener.getsockname()) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as made:
        yield made


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=60)


def read(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (data := connection.recv(65536)):
        got += data
    return got


def trip(connection: socket.socket) -> float:
    """The seconds from a byte sent to its echo."""
    start = time.monotonic()
    connection.sendall(b"x")
    assert read(connection, 1) == b"x"
    return time.monotonic() - start


def refused(proxy: Proxy) -> bool:
    try:
        connect(proxy).close()
    except ConnectionRefusedError:
        return True
    return False


def test_bytes_pass_both_ways_unchanged_until_each_side_closes(
    echo: Echo, client: socket.socket, proxy: Proxy
) -> None:
    sent = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(100_000))
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    got = read(client, len(sent))
    sender.join(60)
    client.shutdown(socket.SHUT_WR)
    assert got == sent == bytes(echo.got)
    assert client.recv(1) == b""
    assert wait_until(lambda: proxy.connections == 0, 60)
    assert (proxy.accepted, proxy.up, proxy.down) == (1, len(sent), len(sent))
    assert echo.resets == 0


@pytest.mark.parametrize("up", [0.2, 0.0])
def test_a_delay_is_at_least_that_in_its_direction(
    client: socket.socket, proxy: Proxy, up: float
) -> None:
    trip(client)
    proxy.delay(up, 0.2)
    assert trip(client) >= up + 0.2
    proxy.heal()
    # The shortest of several: a busy machine can only make them longer.
    assert min(trip(client) for _ in range(100)) < 0.2


def test_a_delay_does_not_narrow_the_line(client: socket.socket, proxy: Proxy) -> None:
    proxy.delay(0.3)
    start = time.monotonic()
    for _ in range(100):
        client.sendall(b"y")
        time.sleep(0.001)
    assert read(client, 100) == b"y" * 100
    # One after the other it would take a minute.
    assert 0.6 <= time.monotonic() - start < 30


def test_a_limit_is_kept_on_average(client: socket.socket, proxy: Proxy) -> None:
    proxy.limit(200_000)
    start = time.monotonic()
    client.sendall(b"z" * 100_000)
    assert len(read(client, 100_000)) == 100_000
    assert time.monotonic() - start >= 0.45


def test_a_cut_resets_both_sides_and_new_connections_are_taken(
    echo: Echo, client: socket.socket, proxy: Proxy
) -> None:
    trip(client)
    proxy.cut()
    assert proxy.connections == 0
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert wait_until(lambda: echo.resets == 1, 60)
    with connect(proxy) as other:
        trip(other)


def test_a_cut_after_so_many_bytes_comes_exactly_then_and_once(
    echo: Echo, client: socket.socket, proxy: Proxy
) -> None:
    trip(client)
    proxy.cut_after(100_000)
    with pytest.raises(ConnectionError):
        client.sendall(b"u" * 50_000_000)
    assert wait_until(lambda: echo.resets == 1, 60)
    assert len(echo.got) == 1 + 100_000
    with connect(proxy) as other:
        other.sendall(b"u" * 300_000)
        assert len(read(other, 300_000)) == 300_000


def test_refused_connections_come_back_to_the_same_port(
    client: socket.socket, proxy: Proxy
) -> None:
    trip(client)
    proxy.refuse()
    assert refused(proxy)
    trip(client)
    proxy.heal()
    with connect(proxy) as other:
        other.sendall(b"x")  # the echo serves one after the other
        client.close()
        assert read(other, 1) == b"x"


def test_a_stalled_connection_carries_nothing_until_it_is_healed(
    client: socket.socket, proxy: Proxy
) -> None:
    trip(client)
    proxy.stall()
    client.sendall(b"x")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert proxy.connections == 1
    client.settimeout(60)
    proxy.heal()
    assert client.recv(1) == b"x"


def test_a_target_that_is_not_there_resets_the_client() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with (
            Proxy(free.getsockname()) as other,
            pytest.raises(ConnectionResetError),  # by either of these
            connect(other) as connection,
        ):
            connection.recv(1)


def test_a_cut_in_the_moment_in_which_a_connection_ends_leaves_no_socket_open(echo: Echo) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for step in range(600):
            with Proxy(echo.listener.getsockname()) as line:
                with socket.create_connection((line.host, line.port), timeout=10) as client:
                    client.sendall(b"word")
                    assert client.recv(2) == b"wo"  # what is not read makes closing a reset
                until = time.monotonic() + (step % 200) * 1e-6
                while time.monotonic() < until:
                    pass
                line.cut()
        gc.collect()
    assert [str(it.message) for it in caught] == []
