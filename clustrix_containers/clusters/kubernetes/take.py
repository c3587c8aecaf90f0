"""From a pod to the run's directory: the outcome of an element, however it was delivered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clustrix_containers import contract
from clustrix_containers.errors import ClusterError, ResultLost
from clustrix_containers.results import inline

from .api import Api
from .manifest import CONTAINER, NOTE_COMMAND
from .verdict import PodView

STDOUT, STDERR = 1, 2
SILENCE = 60.0
"""Seconds without a byte after which a stream is given up: its node may be gone."""


def said_by(pod: PodView, run: str) -> inline.Inline | inline.Stored | None:
    """What a pod's termination message says of the outcome; ``None`` if it is not our worker's.

    ``ResultLost`` if the worker could not deliver it.
    """
    if not (pod.message or "").startswith((contract.INLINE, contract.STORED, contract.FAILED)):
        return None
    said = inline.read(pod.message or "")
    if isinstance(said, inline.Undelivered):
        text = f"element {pod.element}: its result was not delivered: {said.reason}"
        raise ResultLost(text, run=run, element=pod.element)
    return said


def from_pod(
    api: Api, namespace: str, pod: PodView, directory: Path, *, run: str, key: bytes
) -> None:
    """Take the outcome that a pod holds through an exec stream, and tell it that it may end."""
    element, attempt = pod.element or 0, pod.attempt
    full = api.call("read a pod", api.core.read_namespaced_pod, pod.name, namespace)
    python = _interpreter(api, namespace, full)
    command = [python, contract.GIVER, "give", contract.RESULTS, str(element), str(attempt)]
    with exchange(api, namespace, pod.name, command) as connection:
        inline.receive(output(connection), directory, element, attempt, key=key, run=run)
        # It is here: whether the pod hears of it or not, nothing is lost.
        with contextlib.suppress(Exception):
            connection.write_stdin(b"taken\n")
            for _ in output(connection):
                pass


@contextlib.contextmanager
def exchange(api: Api, namespace: str, pod: str, command: Sequence[str]) -> Iterator[Any]:
    """A command in a pod; if the connection breaks, a ClusterError that says it may pass."""
    from kubernetes.client import ApiException
    from websocket import WebSocketException

    try:
        connection = _exec(api, namespace, pod, command)
        # The client forgets the socket of a connection that the other side has closed.
        with contextlib.closing(connection.sock.sock), contextlib.closing(connection):
            yield connection
    except (ApiException, WebSocketException, OSError, inline.StreamEnded) as error:
        said = getattr(error, "reason", None) or error
        raise ClusterError(
            f"taking the result out of the pod {pod} broke off: {said}", temporary=True
        ) from error


def _exec(api: Api, namespace: str, pod: str, command: Sequence[str]) -> Any:
    """Run a command in a pod; gives the client's open WebSocket.

    What ``kubernetes.stream`` does, on a client of its own: that function changes the client that
    it is given while it runs, and others use ours. Nothing of what arrives is kept.
    """
    from kubernetes.client import ApiClient, ApiException, CoreV1Api
    from kubernetes.stream.ws_client import websocket_call

    configuration = api.client.configuration

    def connect(*arguments: Any, **options: Any) -> Any:
        try:
            return websocket_call(
                configuration, *arguments, binary=True, capture_all=False, **options
            )
        except ApiException as error:
            # It has no body, and the client's own handling of errors wants one.
            raise ConnectionError(str(error.reason)) from error

    client = ApiClient(configuration)
    client.request = connect
    return CoreV1Api(client).connect_get_namespaced_pod_exec(
        pod,
        namespace,
        container=CONTAINER,
        command=list(command),
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )


def _interpreter(api: Api, namespace: str, pod: Any) -> str:
    """The image's Python: its Job notes the entry point."""
    import json

    name = (
        pod.metadata.labels.get("job-name") or pod.metadata.labels["batch.kubernetes.io/job-name"]
    )
    job = api.plain(api.call("read a Job", api.batch.read_namespaced_job, name, namespace))
    command = json.loads(job["metadata"].get("annotations", {}).get(NOTE_COMMAND) or "[]")
    return str(command[0]) if command else f"{contract.VENV}/bin/python"


def output(connection: Any) -> Iterator[bytes]:
    """What a command prints, in pieces. ClusterError with what it said if it fails.

    The client's own reading waits for the socket, also for what TLS has read from it already: so
    frames are read here. https://kubernetes.io/docs/reference/using-api/ names the channels.
    """
    from websocket import ABNF

    connection.sock.settimeout(SILENCE)
    while True:
        code, frame = connection.sock.recv_data_frame(True)
        if code == ABNF.OPCODE_CLOSE:
            return
        if code not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or len(frame.data) < 2:
            continue
        channel, data = frame.data[0], frame.data[1:]
        if channel == STDOUT:
            yield data
        elif channel == STDERR:
            text = data.decode("utf-8", "replace").strip()
            raise ClusterError(f"the result cannot be taken out of the pod: {text}")
