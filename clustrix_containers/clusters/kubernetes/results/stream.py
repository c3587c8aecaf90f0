"""A command in a pod and its three streams, over a WebSocket none of whose waits is endless.

``kubernetes.stream`` connects without any timeout: it would wait forever for an API server that
accepts and is silent.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clustrix_containers.clusters.kubernetes.api import Api
from clustrix_containers.clusters.kubernetes.manifest import CONTAINER
from clustrix_containers.errors import ClusterError
from clustrix_containers.worker import contract

if TYPE_CHECKING:
    from websocket import WebSocket

STDIN, STDOUT, STDERR, ERROR = 0, 1, 2, 3
CONNECT = 10.0
"""Seconds for each of: the connection, TLS, and each piece of the response to the upgrade."""
MAX_STDERR = 4096
DELIVER = (f"{contract.VENV}/bin/python", contract.DELIVER_SCRIPT)


class BrokenOff(Exception):
    """A connection that ended, or was silent for too long, before the command ended."""


class Command:
    """A command that runs in a pod. ``stderr`` is the beginning of its standard error.

    ``succeeded`` is known once its output has ended.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.stderr = ""
        self.succeeded: bool | None = None

    def output(self, silence: float, within: float = float("inf")) -> Iterator[bytes]:
        """Its standard output in pieces, to its end; :class:`BrokenOff` if that does not come.

        ``silence`` and ``within``: seconds without a byte, and in all.
        """
        from websocket import ABNF, WebSocketException

        end = time.monotonic() + within
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise BrokenOff(f"it took more than {within:g} s")
            # The client's own reading waits for the socket, also for what TLS has read from it
            # already: so frames are read here.
            # https://kubernetes.io/docs/reference/using-api/ names the channels.
            try:
                self._socket.settimeout(min(silence, left))
                code, frame = self._socket.recv_data_frame(True)
            except (WebSocketException, OSError) as error:
                raise BrokenOff(str(error)) from error
            if code == ABNF.OPCODE_CLOSE:
                return
            if code not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or len(frame.data) < 2:
                continue
            channel, data = frame.data[0], frame.data[1:]
            if channel == STDOUT:
                yield data
            elif channel == STDERR:
                self.stderr = (self.stderr + data.decode("utf-8", "replace"))[:MAX_STDERR]
            elif channel == ERROR:
                self._end(data)

    def finish(self, line: bytes, within: float) -> bool:
        """Write to its standard input and wait for its end; whether it then succeeded.

        Takes ``within`` seconds at most, and raises nothing.
        """
        from websocket import ABNF, WebSocketException

        with contextlib.suppress(OSError, WebSocketException, BrokenOff):
            self._socket.settimeout(within)
            self._socket.send(bytes([STDIN]) + line, ABNF.OPCODE_BINARY)
            for _ in self.output(within, within):
                pass
        return self.succeeded is True

    def _end(self, data: bytes) -> None:
        try:
            self.succeeded = json.loads(data)["status"] == "Success"
        except (ValueError, KeyError, TypeError):
            self.succeeded = False
        if not self.succeeded:
            self.stderr = self.stderr or data.decode("utf-8", "replace")[:MAX_STDERR]


@contextlib.contextmanager
def deliver(
    api: Api, pod: str, words: Sequence[str], *, patience: float = CONNECT
) -> Iterator[Command]:
    """Run our ``deliver.py`` in a pod of ours with these arguments.

    ``ClusterError`` if it cannot be started; ``temporary`` says whether that may pass.
    """
    connection = _connect(api, pod, words, patience)
    # The client forgets the socket of a connection that the other side has closed. And no closing
    # handshake: the other side may be gone.
    raw = connection.sock
    assert raw is not None
    with contextlib.closing(raw):
        yield Command(connection)


def _connect(api: Api, pod: str, words: Sequence[str], patience: float) -> WebSocket:
    from functools import partial

    from kubernetes.client import ApiClient, CoreV1Api

    # A client of its own, whose requests are WebSockets: others use ours at the same time.
    client = ApiClient(api.client.configuration)
    client.request = partial(_open, api.client.configuration)
    execute = CoreV1Api(client).connect_get_namespaced_pod_exec
    # An API server that has just started does not know yet who may do what.
    api.allowed.add(execute.__name__)
    try:
        made: WebSocket = api.call(
            f"run a command in the pod {pod}",
            execute,
            pod,
            api.namespace,
            container=CONTAINER,
            command=[*DELIVER, *words],
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
            stream=True,
            patience=0.0,
            _request_timeout=patience,
        )
    except ClusterError as error:
        # Whoever tries again looks at the pod first, which may be gone.
        error.fields["temporary"] = not error.fields["denied"]
        raise
    return made


def _open(configuration: Any, _method: str, url: str, **options: Any) -> Any:
    """What ``kubernetes.stream.ws_client`` does, with an end to each of its waits."""
    from kubernetes.client import ApiException
    from kubernetes.stream import ws_client
    from websocket import WebSocket as Connection
    from websocket import WebSocketBadStatusException, WebSocketException

    headers = options.get("headers") or {}
    address = ws_client.get_websocket_url(url, options.get("query_params"))
    sent = ["sec-websocket-protocol: v4.channel.k8s.io"]
    if "authorization" in headers:
        sent.append(f"authorization: {headers['authorization']}")
    settings: dict[str, Any] = {"header": sent, "timeout": options["_request_timeout"]}
    if configuration.proxy or configuration.proxy_headers:
        settings = ws_client.websocket_proxycare(settings, configuration, address, headers)
    made: Any = Connection(sslopt=_tls(configuration), skip_utf8_validation=True)
    try:
        made.connect(address, **settings)
    except WebSocketBadStatusException as error:
        refused = ApiException(error.status_code, str(error))
        refused.body = error.resp_body
        raise refused from error
    except WebSocketException as error:
        raise OSError(str(error)) from error
    return made


def _tls(configuration: Any) -> dict[str, Any]:
    import ssl

    verify = configuration.verify_ssl
    found = {
        "cert_reqs": ssl.CERT_REQUIRED if verify else ssl.CERT_NONE,
        "ca_certs": configuration.ssl_ca_cert,
        "check_hostname": configuration.assert_hostname if verify else False,
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }
    return {name: value for name, value in found.items() if value is not None}
