"""The official client, connected as kubectl would be: JSON in and out, retries, our errors."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from clustrix_containers.errors import ClusterError
from clustrix_containers.remote.retry import Retry

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, BatchV1Api, CoreV1Api

T = TypeVar("T")
R = TypeVar("R")

OLDEST = (1, 19)
PAGE = 500
PARALLEL = 8
"""How many requests that belong together are sent at the same time."""
CONNECT, READ = 10.0, 60.0
PATIENCE = 60.0
"""Seconds for which a request is retried whose failure may pass."""
RETRY = Retry(attempts=1000, first=0.1, longest=5.0, patience=30.0)
"""The delays between; :data:`PATIENCE` ends the attempts."""
DENIED = 20.0
"""Seconds for which a request is retried that is denied now and was allowed before."""


class Server(NamedTuple):
    """An API server's version: what it can do. Fields that it does not know are dropped silently, so none
    is sent."""

    major: int
    minor: int

    @classmethod
    def parse(cls, major: str, minor: str) -> Server:
        """From the two fields of ``/version`` (``"27+"`` on some clouds)."""
        numbers = [re.match(r"\d+", text) for text in (major, minor)]
        if not all(numbers):
            raise ClusterError(f"the API server has no valid version: {major!r}.{minor!r}")
        return cls(*(int(number[0]) for number in numbers if number))

    def __str__(self) -> str:
        return f"Kubernetes {self.major}.{self.minor}"

    @property
    def group_policy(self) -> bool:
        """``fsGroupChangePolicy`` (on by default since 1.20)."""
        return self >= (1, 20)

    @property
    def indexed(self) -> bool:
        """Indexed Jobs, and Jobs that are created suspended (both on by default since 1.22)."""
        return self >= (1, 22)

    @property
    def labels_indexes(self) -> bool:
        """Whether the pods of an Indexed Job have their index as a label (since 1.28)."""
        return self >= (1, 28)

    @property
    def failure_policy(self) -> bool:
        """``podFailurePolicy`` and the condition DisruptionTarget (on by default since 1.26)."""
        return self >= (1, 26)

    @property
    def limit_per_index(self) -> bool:
        """``backoffLimitPerIndex`` (on by default since 1.29)."""
        return self >= (1, 29)

    def describe(self, count: int) -> str:
        """How an array of ``count`` elements runs there, in one sentence."""
        if count == 1:
            return f"{self}: one Job"
        if not self.indexed:
            return f"{self} has no Indexed Jobs: each of the {count} elements is a Job"
        if not self.limit_per_index:
            return f"{self}: one Indexed Job; its retries are counted for all elements together"
        return f"{self}: one Indexed Job, whose elements fail and are retried one by one"


@dataclass
class Api:
    """One API server and namespace: thread-safe, shared by all runs of a target."""

    client: ApiClient
    core: CoreV1Api
    batch: BatchV1Api
    where: str
    namespace: str
    allowed: set[str] = field(default_factory=set)
    """The client's functions that the server has allowed before."""
    _server: Server | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def server(self) -> Server:
        """The API server's version, queried once."""
        with self._lock:
            if self._server is None:
                from kubernetes.client import VersionApi

                code = self.call("query the version", VersionApi(self.client).get_code)
                server = Server.parse(code["major"], code["minor"])
                if server < OLDEST:
                    raise ClusterError(
                        f"{self.where} is {server}; at least {OLDEST[0]}.{OLDEST[1]} is needed"
                    )
                self._server = server
            return self._server

    def call(
        self,
        action: str,
        function: Callable[..., Any],
        *arguments: Any,
        none: tuple[int, ...] = (),
        stream: bool = False,
        patience: float = PATIENCE,
        **options: Any,
    ) -> Any:
        """The JSON that a function of the client gives, retried while that may help.

        ``action`` completes "cannot …". ``None`` for a response whose status is in ``none``;
        the undecoded response with ``stream``. ``ClusterError`` (``status``, ``temporary``) says
        what failed.
        """
        options.setdefault("_request_timeout", (CONNECT, READ))
        name = getattr(function, "__name__", action)
        begun = time.monotonic()
        failures = 0
        while True:
            try:
                response = function(*arguments, _preload_content=False, **options)
                self.allowed.add(name)
                if stream:
                    return response
                with contextlib.closing(response):
                    return json.loads(response.data)
            except Exception as error:  # noqa: PERF203
                problem = _problem(error, f"cannot {action} at {self.where}")
                if problem is None:
                    raise
                if problem.fields["status"] in none:
                    return None
                limit = patience
                if problem.fields["denied"] and name in self.allowed:
                    # An API server that has just started does not know yet who may do what.
                    limit, problem.fields["temporary"] = DENIED, True
                failures += 1
                delay = RETRY.delay(failures, problem)
                if delay is None or time.monotonic() + delay > begun + limit:
                    problem.fields["temporary"] &= not problem.fields["denied"]
                    raise problem from error
                time.sleep(delay)

    def function(self, verb: str, kind: str) -> Callable[..., Any]:
        """The client's function for a kind of namespaced object, as ``pod`` or ``job``."""
        client = self.batch if kind == "job" else self.core
        function: Callable[..., Any] = getattr(client, f"{verb}_namespaced_{kind}")
        return function

    def read(self, kind: str, name: str, **options: Any) -> dict[str, Any] | None:
        """An object of the namespace; ``None`` if there is none of this name."""
        return self._one("read", kind, name, name, none=(404,), **options)

    def create(self, kind: str, item: dict[str, Any], **options: Any) -> dict[str, Any] | None:
        """Create an object as :mod:`.manifest` makes it; ``None`` if there is one of this name."""
        name = item["metadata"]["name"]
        return self._one("create", kind, name, body=item, none=(409,), **options)

    def patch(self, kind: str, name: str, change: dict[str, Any], **options: Any) -> None:
        self._one("patch", kind, name, name, body=change, **options)

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Delete an object, if there is one of this name, and what it owns."""
        options = {"propagation_policy": "Background", **options}
        self._one("delete", kind, name, name, none=(404,), **options)

    def _one(
        self, verb: str, kind: str, called: str, *name: str, **options: Any
    ) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.call(
            f"{verb} the {kind.replace('_', ' ')} {called}",
            self.function(verb, kind),
            *name,
            namespace=self.namespace,
            **options,
        )
        return found

    def pages(self, kind: str, selector: str, *, limit: int = PAGE) -> Iterator[dict[str, Any]]:
        """The pages of a list of the namespace's objects."""
        more: dict[str, Any] = {"label_selector": selector, "limit": limit}
        while True:
            page = self.call(f"list {kind}s", self.function("list", kind), self.namespace, **more)
            yield page
            more["_continue"] = page["metadata"].get("continue")
            if not more["_continue"]:
                return

    def items(self, kind: str, selector: str, **options: int) -> Iterator[dict[str, Any]]:
        """The namespace's objects that match."""
        return (it for page in self.pages(kind, selector, **options) for it in page["items"])


def each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``function`` of each item, a few at a time; the first error ends it."""
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(PARALLEL, len(items))) as pool:
        return list(pool.map(function, items))


def _problem(error: Exception, what: str) -> ClusterError | None:
    """An exception of the client as our error; ``None`` for one that is not about the cluster."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return _refusal(error, what)
    if not isinstance(error, HTTPError | OSError):
        return None
    text = str(error.__cause__ or getattr(error, "reason", None) or error)
    certificate = "certificate" in text.lower()
    why, hint = (
        (
            "its certificate, or yours, is refused",
            "Is the kubeconfig outdated? `kubectl version` with it shows the same.",
        )
        if certificate
        else ("no response", "Does `kubectl version` get a response?")
    )
    return ClusterError(
        f"{what}: {why}: {text}", hint=hint, temporary=not certificate, status=0, denied=False
    )


def _refusal(error: Any, what: str) -> ClusterError:
    status = int(error.status or 0)
    message = str(error.reason or "")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        message = str(json.loads(error.body).get("message") or message)
    hint = None
    if status == 401:
        hint = "The kubeconfig's credentials are not accepted: have they expired?"
    elif status == 403 and "exceeded quota" not in message:
        hint = PERMISSION_HINT
    retry_after = None
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        retry_after = float(error.headers.get("Retry-After"))
    return ClusterError(
        f"{what}: {status} {message}".rstrip(),
        hint=hint,
        temporary=status in (0, 429, 500, 502, 503, 504),
        status=status,
        retry_after=retry_after,
        # About who asks, and not about what is requested.
        denied=status == 401
        or (status == 403 and bool(re.search(r'User "[^"]*" cannot ', message))),
    )


PERMISSION_HINT = "`cxc doctor --on …` lists the permissions that are missing; k8s/ has a Role."


def lines(response: Any, *, whole: bool = False) -> Iterator[bytes]:
    """The lines of a response as they arrive; the connection is closed at the end.

    A last line without a line break is included, unless only ``whole`` ones are wanted.
    """
    try:
        for line in response:
            if line.endswith(b"\n") or not whole:
                yield line
    finally:
        response.close()
        response.release_conn()


def client_library() -> Any:
    """The official client; ClusterError if it is not installed. Importing it takes about a second."""
    try:
        import kubernetes
    except ImportError as error:
        raise ClusterError(
            "a target of type 'kubernetes' needs the package kubernetes",
            hint="pip install 'clustrix-containers[kubernetes]'",
        ) from error
    return kubernetes


def connect(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Api:
    """Connect as kubectl would; in a pod, as that pod's account. Sends no request.

    ``ClusterError`` if there is no kubeconfig, or if it has no such context.
    """
    kubernetes = client_library()

    configuration = kubernetes.client.Configuration()
    # Api.call retries: it knows what may pass.
    configuration.retries = False
    configuration.connection_pool_maxsize = 16
    configuration.socket_options = list(_keepalive())
    try:
        found, where = _load(kubernetes, configuration, kubeconfig, context)
    except kubernetes.config.ConfigException as error:
        raise ClusterError(
            f"no usable kubeconfig: {error}",
            hint="Name the file (kubeconfig:) and context (context:) of the target in clustrix.yml,"
            " or set KUBECONFIG as for kubectl.",
        ) from error
    client = kubernetes.client.ApiClient(configuration)
    client.user_agent = "clustrix-containers"
    core, batch = kubernetes.client.CoreV1Api(client), kubernetes.client.BatchV1Api(client)
    return Api(client, core, batch, where, namespace or found or "default")


def _keepalive() -> Iterator[tuple[int, int, int]]:
    """Socket options that end a connection within a minute whose other side is gone silently.

    Without them a watch over a dead connection would wait for its whole time.
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
        raise ClusterError(f"no such kubeconfig: {file}", option="kubeconfig")
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
