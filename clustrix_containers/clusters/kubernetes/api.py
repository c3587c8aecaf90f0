"""The official client, connected as kubectl would be; its errors in our words."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clustrix_containers.errors import ClusterError

from .server import OLDEST, Server

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, BatchV1Api, CoreV1Api

T = TypeVar("T")
CONNECT, READ = 10.0, 60.0
PATIENCE = 60.0
"""Seconds for which a request is tried again that failed in a way that may pass."""
DENIED = 20.0
"""Seconds after which a request is not allowed any more that used to be."""


@dataclass
class Api:
    """A connection: thread-safe, one per kubeconfig and context of a process."""

    client: ApiClient
    core: CoreV1Api
    batch: BatchV1Api
    where: str
    namespace: str
    _server: Server | None = None
    denied: dict[str, float] = field(default_factory=dict)
    """Since when (monotonic) the server has not allowed something that is not asked by :meth:`call`."""
    _allowed: set[str] = field(default_factory=set)
    """The client's functions that the server has answered before."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def server(self) -> Server:
        """The API server's version, asked once."""
        with self._lock:
            if self._server is None:
                from kubernetes.client import VersionApi

                code = self.call("ask for the version", VersionApi(self.client).get_code)
                self._server = Server.parse(code.major, code.minor)
                if self._server.version < OLDEST:
                    raise ClusterError(
                        f"{self.where} is Kubernetes {code.major}.{code.minor}; at least"
                        f" {OLDEST[0]}.{OLDEST[1]} is needed"
                    )
            return self._server

    def plain(self, item: Any) -> dict[str, Any]:
        """One of the client's models as the API writes it."""
        made: dict[str, Any] = self.client.sanitize_for_serialization(item)
        return made

    def call(self, action: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """``function(…)``, tried again while that may help; ClusterError says what failed.

        ``action`` completes "cannot …". An answer that is final (403, 404, 409, 422) is raised
        as the client's own ApiException where ``final`` holds its status.
        """
        final = options.pop("final", ())
        options.setdefault("_request_timeout", (CONNECT, READ))
        name = getattr(function, "__name__", action)
        begun = time.monotonic()
        end = begun + PATIENCE
        pause = 0.1
        while True:
            try:
                answer = function(*arguments, **options)
                self._allowed.add(name)
                return answer
            except Exception as error:  # noqa: PERF203
                problem = _problem(error)
                if problem is None:
                    raise
                if problem.status in final:
                    raise
                if problem.denied and name in self._allowed:
                    # One that has just started does not know yet who may do what.
                    end = min(end, begun + DENIED)
                elif not problem.temporary:
                    end = 0.0
                if time.monotonic() + pause > end:
                    raise ClusterError(
                        f"cannot {action} at {self.where}: {problem.text}",
                        hint=problem.hint,
                        temporary=problem.temporary,
                    ) from error
                time.sleep(max(pause * random.uniform(0.5, 1.0), problem.wait))  # noqa: S311
                pause = min(pause * 2, 5.0)


@dataclass(frozen=True)
class _Problem:
    text: str
    temporary: bool
    status: int = 0
    hint: str | None = None
    wait: float = 0.0
    denied: bool = False
    """Whether it is about who asks, and not about what is asked for."""


def _problem(error: Exception) -> _Problem | None:
    """What an exception of the client means; ``None`` for one that is not about the cluster."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return _answer(error)
    if isinstance(error, HTTPError | OSError):
        text = str(error.__cause__ or getattr(error, "reason", None) or error)
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
            return _Problem(
                f"its certificate, or yours, is refused: {text}",
                False,
                hint="Is the kubeconfig an old one? `kubectl version` with it shows the same.",
            )
        return _Problem(f"no answer: {text}", True, hint="Does `kubectl version` get an answer?")
    return None


def _answer(error: Any) -> _Problem:
    status = int(error.status or 0)
    message = str(error.reason or "")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        message = json.loads(error.body).get("message") or message
    hint = None
    if status == 401:
        hint = "The kubeconfig's credentials are not accepted: have they expired?"
    elif status == 403 and "exceeded quota" not in message:
        hint = "`cxc doctor --on …` lists the permissions that are missing; k8s/ has a Role."
    wait = 0.0
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        wait = min(30.0, float(error.headers.get("Retry-After") or 0))
    temporary = status in (0, 429, 500, 502, 503, 504)
    denied = status == 401 or (status == 403 and bool(re.search(r'User "[^"]*" cannot ', message)))
    return _Problem(f"{status} {message}".strip(), temporary, status, hint, wait, denied)


def body(answer: Any) -> Any:
    """The JSON of an answer that was not decoded (``_preload_content=False``)."""
    try:
        return json.loads(answer.data)
    finally:
        answer.release_conn()


def lines(answer: Any, *, whole: bool = False) -> Iterator[bytes]:
    """The lines of an answer as they arrive; the connection is closed at the end.

    A last line without an end comes too, unless only ``whole`` ones are wanted.
    """
    rest = b""
    try:
        for chunk in answer.stream(1 << 16, decode_content=True):
            *ended, rest = (rest + chunk).split(b"\n")
            yield from (line + b"\n" for line in ended)
        if rest and not whole:
            yield rest
    finally:
        answer.close()
        answer.release_conn()


_connections: dict[tuple[str, str, str], Api] = {}
_connecting = threading.Lock()


def connect(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Api:
    """Connect as kubectl would; in a pod, as that pod's account. Asks the server nothing.

    ClusterError if there is no kubeconfig, or if it has no such context.
    """
    key = (str(kubeconfig), str(context), str(namespace))
    with _connecting:
        if key not in _connections:
            _connections[key] = _connect(kubeconfig, context, namespace)
        return _connections[key]


def _connect(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Api:
    try:
        import kubernetes
    except ImportError as error:
        raise ClusterError(
            "a target of type 'kubernetes' needs the package kubernetes",
            hint="pip install 'clustrix-containers[kubernetes]'",
        ) from error
    from kubernetes.config import ConfigException

    configuration = kubernetes.client.Configuration()
    # Tried again by us, who know what may pass.
    configuration.retries = False
    configuration.connection_pool_maxsize = 16
    configuration.socket_options = list(_noticing_dead_lines())
    try:
        found, where = _load(kubernetes, configuration, kubeconfig, context)
    except ConfigException as error:
        raise ClusterError(
            f"there is no usable kubeconfig: {error}",
            hint="Name the file (kubeconfig:) and context (context:) of the target in clustrix.yml,"
            " or set KUBECONFIG as for kubectl.",
        ) from error
    client = kubernetes.client.ApiClient(configuration)
    client.user_agent = "clustrix-containers"
    core, batch = kubernetes.client.CoreV1Api(client), kubernetes.client.BatchV1Api(client)
    return Api(client, core, batch, where, namespace or found or "default")


def _noticing_dead_lines() -> Iterator[tuple[int, int, int]]:
    """Socket options by which a connection ends whose other side says nothing: within a minute.

    Else a watch over a line that is dead, and does not say so, would wait for its whole time.
    """
    import socket

    yield socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    # Seconds, a number, milliseconds. Not every system has them all.
    wanted = (("KEEPIDLE", 20), ("KEEPINTVL", 10), ("KEEPCNT", 3), ("USER_TIMEOUT", 40_000))
    for name, value in wanted:
        if option := getattr(socket, f"TCP_{name}", None):
            yield socket.IPPROTO_TCP, option, value


def _load(
    kubernetes: Any, configuration: Any, kubeconfig: Path | None, context: str | None
) -> tuple[str | None, str]:
    """Fill the configuration in; the context's namespace, and a name for the cluster."""
    import os

    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    file = str(kubeconfig.expanduser()) if kubeconfig is not None else None
    if file is not None and not Path(file).exists():
        raise ClusterError(f"there is no kubeconfig {file}", option="kubeconfig")
    usual = os.environ.get("KUBECONFIG") or "~/.kube/config"
    if file is None and account.exists() and not Path(usual).expanduser().exists():
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        return account.read_text().strip(), "this cluster"
    kubernetes.config.load_kube_config(
        config_file=file, context=context, client_configuration=configuration
    )
    contexts, active = kubernetes.config.list_kube_config_contexts(config_file=file)
    chosen = next((it for it in contexts if it["name"] == context), active)
    return chosen["context"].get("namespace"), f"{chosen['name']} ({configuration.host})"
