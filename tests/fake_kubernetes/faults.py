"""Failures of the API on demand, and the requests that were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from tests.fake_kubernetes.api import Api
from tests.fake_kubernetes.kubelet import Kubelet
from tests.fake_kubernetes.objects import JOBS, PODS, ApiError, condition, ended
from tests.fake_kubernetes.watch import Watches

Run: TypeAlias = Callable[[Callable[[], Any]], Any]
"""Calls a function in the cluster's event loop, and gives its result."""


class Request(NamedTuple):
    verb: str
    resource: str
    """With its subresource: ``pods/exec``; ``version`` for that."""
    agent: str


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a verb and a resource."""

    verb: str
    resource: str
    times: int
    error: ApiError | None = None
    """The answer, with nothing done."""
    cut_before: bool = False
    """The connection is cut, with nothing done."""
    cut_after: bool = False
    """The request is carried out, and the connection then cut."""


@dataclass
class Requests:
    made: Counter[Request] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of responses' bodies, by verb."""
    faults: list[Fault] = field(default_factory=list)

    def count(self, request: Request) -> Fault | None:
        """Count a request; the fault that it meets, if any."""
        self.made[request] += 1
        for it in self.faults:
            if (it.verb, it.resource) == request[:2]:
                it.times -= 1
                if not it.times:
                    self.faults.remove(it)
                return it
        return None


class Faults:
    """Each takes effect before it returns. ``verb`` and ``resource`` as in RBAC."""

    def __init__(
        self, run: Run, api: Api, kubelet: Kubelet, requests: Requests, watches: Watches
    ) -> None:
        self._run = run
        self._api = api
        self._kubelet = kubelet
        self._requests = requests
        self._watches = watches

    # -- requests

    def refuse(
        self,
        verb: str,
        resource: str,
        code: int,
        *,
        times: int = 1,
        message: str = "the server is currently unable to handle the request",
        retry_after: int | None = None,
    ) -> None:
        """Answer the next requests with an HTTP status (403, 429, 500, 503)."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._add(Fault(verb, resource, times, error=ApiError(code, message, headers)))

    def cut(self, verb: str, resource: str, times: int = 1) -> None:
        """Cut the connections of the next requests, with nothing done."""
        self._add(Fault(verb, resource, times, cut_before=True))

    def lose_reply(self, verb: str, resource: str, times: int = 1) -> None:
        """Carry the next requests out, and cut their connections instead of answering."""
        self._add(Fault(verb, resource, times, cut_after=True))

    def _add(self, fault: Fault) -> None:
        self._run(lambda: self._requests.faults.append(fault))

    def clear(self) -> None:
        """No more failures of requests."""
        self._run(self._requests.faults.clear)

    # -- watches

    def expire_watches(self) -> None:
        """Drop the history: open watches end with an ERROR event of code 410."""

        def expire() -> None:
            self._api.store.expire()
            self._watches.end("expire")

        self._run(expire)

    def cut_watches(self) -> None:
        self._run(lambda: self._watches.end("cut"))

    def close_watches(self) -> None:
        self._run(lambda: self._watches.end("close"))

    # -- pods

    def collect_pods(self, namespace: str, job: str) -> int:
        """Delete the finished pods of a Job, as the pod garbage collector does where there are many."""
        store = self._api.store

        def collect() -> int:
            uid = store.get(JOBS, namespace, job)["metadata"]["uid"]
            done = [key for key, pod in store.dependents(uid) if key[0] == PODS and ended(pod)]
            for key in done:
                store.delete(key, 0)
            return len(done)

        return int(self._run(collect))

    def evict(self, namespace: str, pod: str) -> None:
        """The node is short of memory, and its kubelet evicts the pod."""
        message = "The node was low on resource: memory. "
        target = condition("DisruptionTarget", "True", "TerminationByKubelet", message)
        self._run(lambda: self._kubelet.pod(namespace, pod).evict(target, message))
