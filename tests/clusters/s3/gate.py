"""SeaweedFS in a network of its own, and the two ports by which this machine reaches it.

``weed`` listens on fixed ports of localhost, many of them, and has sockets of fixed names in
``/tmp``: two of them on one machine collide. So it gets namespaces in which it is alone, and
this process, which bound its two ports before it went there, carries bytes between the two.
It understands nothing of them: what is refused is refused by SeaweedFS.

``python -m tests.clusters.s3.gate HOST PORT TLS_PORT WEED`` runs in the cluster's directory, and
prints ``serving PORT TLS_PORT`` when both answer; port 0 is any free one. With it ends ``weed``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.clusters.ports import bind
from tests.clusters.relay import copy

RUN = Path("run")
"""What ``weed`` sees as its ``/tmp``: its data, its settings, its sockets."""
CUT = Path("cut")
"""Holds the number of bytes after which the next connection breaks off."""
PLAIN, SECURE = 8333, 8334
_ALONE = 'exec 3< "$1"; mount --bind -- "$2" /tmp; shift 2; cd /tmp; exec /proc/self/fd/3 "$@"'


def enter(host: str, ports: list[int], weed: str) -> None:
    """Bind the ports, then go on as :func:`serve` in a network namespace of its own."""
    listeners = [bind(host, port) for port in ports]
    for listener in listeners:
        listener.set_inheritable(True)
    own_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    numbers = [str(it.detach()) for it in listeners]
    module = "tests.clusters.s3.gate"
    command = ("unshare", *own_user, "--net", sys.executable, "-u", "-m", module)
    os.execvp("unshare", [*command, "--inside", weed, *numbers])


def serve(weed: str, listeners: list[socket.socket]) -> None:
    """Start ``weed``, and forward bytes until it ends or this process gets SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    process = subprocess.Popen(
        # Its parent's end is its own, whatever ended the parent.
        [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-ec", _ALONE, "sh"),
            *(weed, str(RUN), *_options()),
        ],
        env={"HOME": "/tmp", "PATH": os.environ["PATH"], "GOMEMLIMIT": "192MiB"},
    )
    try:
        Path("weed.pid").write_text(str(process.pid))
        while not (_answers(PLAIN) and _answers(SECURE)):
            if process.poll() is not None:
                sys.exit(f"weed ended with {process.returncode}")
            time.sleep(0.02)
        for listener, port in zip(listeners, (PLAIN, SECURE), strict=True):
            threading.Thread(target=_accept, args=(listener, port), daemon=True).start()
        sys.stderr.write("serving {} {}\n".format(*(it.getsockname()[1] for it in listeners)))
        sys.exit(f"weed ended with {process.wait()}")
    finally:
        process.kill()  # what a test has stored is thrown away: nothing to write down in peace
        process.wait()


def _options() -> list[str]:
    return [
        *("server", "-ip=127.0.0.1", "-dir=/tmp/data", "-volume.max=0"),
        *("-master.volumeSizeLimitMB=2048", "-volume.minFreeSpace=100MiB"),
        # Alone, it waits that long after a restart until it elects itself.
        *("-master.electionTimeout=1s", "-master.telemetry=false"),
        *("-filer", "-s3", f"-s3.port={PLAIN}", f"-s3.port.https={SECURE}"),
        *("-s3.config=/tmp/s3.json", "-s3.cert.file=/tmp/server.pem"),
        *("-s3.key.file=/tmp/server.key", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), _connected(port):
        return True
    return False


def _accept(listener: socket.socket, port: int) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_carry, args=(client, port), daemon=True).start()


def _carry(client: socket.socket, port: int) -> None:
    limit = _Limit()
    with client, contextlib.suppress(OSError), _connected(port) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=copy, args=(server, client), daemon=True)
        back.start()
        copy(client, server, limit)
        back.join()


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


class _Limit:
    """How many bytes the client may still send: the number in the file, which is removed; else any."""

    def __init__(self) -> None:
        self.left = float("inf")
        taken = CUT.with_name(f"cut-{threading.get_ident()}")
        with contextlib.suppress(FileNotFoundError):
            CUT.rename(taken)
            self.left = int(taken.read_text())
            taken.unlink()

    def __call__(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ConnectionResetError


def main(arguments: list[str]) -> None:
    if arguments[0] == "--inside":
        serve(arguments[1], [socket.socket(fileno=int(it)) for it in arguments[2:]])
    else:
        host, plain, secure, weed = arguments
        enter(host, [int(plain), int(secure)], weed)


if __name__ == "__main__":
    main(sys.argv[1:])
