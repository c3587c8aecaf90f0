"""The Kubernetes target: a run is a Job, or an Indexed Job, of its image's digest.

Nothing of ours is installed in the cluster. The Job's name is the run's, so that submitting
again finds it; the run's key is a Secret that the Job owns.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Notify, staging
from clustrix_containers.clusters.kubernetes.pods import logs
from clustrix_containers.clusters.kubernetes.pods.status import Events, status_of
from clustrix_containers.clusters.kubernetes.pods.views import PodView, newest
from clustrix_containers.clusters.kubernetes.pods.watch import Watcher
from clustrix_containers.clusters.kubernetes.results import take
from clustrix_containers.clusters.kubernetes.results.reader import Reader
from clustrix_containers.clusters.task import Capabilities, DiscoveredRun, Fetched, Handle, Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.results import delivery, directory
from clustrix_containers.results.outcome import Expected

from . import doctor, submit
from .api import Api, client_library, connect
from .settings import Settings, check

if TYPE_CHECKING:
    from clustrix_containers.oci.model import Image
    from clustrix_containers.remote.progress import Progress

NAMED_GRACE, UNNAMED_GRACE = 75.0, 15.0
"""Seconds for which a file on a volume may show up late: one that a pod has named, and any."""
SLOW = 3.0
"""Seconds without pods after which the reason for a Job having none is of interest."""
ENDING = 60.0
"""Seconds, besides its grace, that a pod has to end once its Job has: its node may be gone."""


class KubernetesCluster:
    """Runs tasks as Jobs in a namespace.

    ``kubeconfig``, ``context``, ``namespace``: as kubectl takes them. ``pull_secret``: the
    name of the Secret that images are pulled with. ``results``: where results go that do not fit into a
    termination message. ``hold``: how long a pod keeps a result for the client. ``ttl``: how long a
    finished Job is kept. ``deadline``: of a whole Job. ``pull_grace``: for how long an image may
    fail to be pulled. ``pod_template``: merged over ours, strategically. ``user``: the uid, or
    ``any`` where the cluster chooses. ``queue``: Kueue's.
    """

    def __init__(
        self,
        *,
        kubeconfig: str | Path | None = None,
        context: str | None = None,
        namespace: str | None = None,
        pull_secret: str | None = None,
        results: str | Mapping[str, Any] = "auto",
        hold: str | float = 3600,
        ttl: str | float = 3 * 86400,
        deadline: str | float | None = None,
        pull_grace: str | float = 60,
        grace: str | float = 5.0,
        queue: str | None = None,
        service_account: str | None = None,
        priority_class: str | None = None,
        node_selector: Mapping[str, str] | None = None,
        tolerations: Sequence[Mapping[str, Any]] = (),
        affinity: Mapping[str, Any] | None = None,
        pod_template: Mapping[str, Any] | None = None,
        gpu_resource: str = "nvidia.com/gpu",
        user: int | str = 65532,
    ) -> None:
        options = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "kubeconfig", "context", "namespace")
        }
        self._checked = check(options)
        # Now, since it takes long: a query that has a time limit begins later.
        client_library()
        self._kubeconfig = Path(kubeconfig) if kubeconfig is not None else None
        self._context, self._namespace = context, namespace
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._stuck_since: dict[str, float] = {}
        """Since when a pod (by uid) cannot start."""
        self._podless_since: dict[str, float] = {}
        """Since when a Job (by uid) has no pods."""
        self._unconfirmed_since: dict[Handle, float] = {}
        """Since when an element's end is known by its Job alone."""

    @property
    def _connected(self) -> _Connection:
        with self._lock:
            if self._connection is None:
                api = connect(self._kubeconfig, self._context, self._namespace)
                self._connection = _Connection(
                    api, Settings(namespace=api.namespace, **self._checked)
                )
            return self._connection

    poll_interval = (0.5, 10.0)

    @property
    def capabilities(self) -> Capabilities:
        """A server without Indexed Jobs cannot limit how many elements run at once."""
        server = self._connected.api.server
        return Capabilities(
            images="registry",
            retries=True,
            max_parallel=server.indexed,
            results=("s3", "registry", "volume"),
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        settings = Settings(namespace="", **self._checked).with_options(options)
        if settings.queue:
            doctor.check_queue(settings, self._connected.api.server)

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """Reachability, version, permissions, pull secret, quota, and a dry run of a Job."""
        try:
            at = self._connected
            return doctor.findings(at.api, at.settings, submit.describe(at.settings))
        except ClusterError as error:
            return [("API server", False, str(error))]

    def stage(self, image: Image, *, repository: str | None, progress: Progress) -> str:
        assert repository is not None  # capabilities.images is registry
        reference = staging.to_registry(image, repository, progress=progress)
        staging.to_layout_if_complete(image)
        return reference

    def describe(self, task: Task) -> str:
        """What the server's version and the options make of the task, and where results go."""
        at = self._connected
        how = at.api.server.describe(len(task.elements))
        return f"{how}. {submit.describe(at.settings.with_options(task.options))}"

    def preview(self, task: Task) -> str:
        """The objects that :meth:`submit` would create, as YAML, without what is secret."""
        import yaml

        at = self._connected
        planned = submit.plan(at.api, at.settings.with_options(task.options), task)
        objects = yaml.safe_dump_all(planned, sort_keys=False)
        return f"# {self.describe(task)}\n{objects}"

    def submit(self, task: Task) -> Sequence[Handle]:
        """Create the Job and its Secret; those that exist already are adopted."""
        at = self._connected
        submit.submit(at.api, at.settings.with_options(task.options), task)
        return submit.handles(at.api, task)

    def subscribe(self, run: str, notify: Notify) -> Callable[[], None]:
        return self._connected.watcher.subscribe(run, notify)

    def states(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        """Sends no request: the watch knows. UNKNOWN if it has been silent for long."""
        at = self._connected
        found: dict[Handle, Status] = {}
        late = handles
        try:
            at.watcher.ensure()
            found, unconfirmed = self._statuses(at, handles)
            late = [it for it, since in unconfirmed.items() if at.watcher.has_caught_up(since)]
            for run in {it.run for it in late}:
                at.watcher.refresh(run)
            for handle in late:
                _end_left_over(at, handle)
        except ClusterError as error:
            return {**found, **dict.fromkeys(late, Status(State.UNKNOWN, message=error.message))}
        return {**found, **self._statuses(at, late)[0]}

    def _statuses(
        self, at: _Connection, handles: Sequence[Handle]
    ) -> tuple[dict[Handle, Status], Mapping[Handle, float]]:
        """The statuses; and which of them only the Job reports, and no pod confirms.

        Then the watch of pods is behind that of Jobs, or the pod is gone, or does not end.
        """
        now = time.monotonic()
        found: dict[Handle, Status] = {}
        unconfirmed: dict[Handle, float] = {}
        for handle in handles:
            pods = at.watcher.pods(handle.run, handle.attempt, handle.element)
            job = at.watcher.job(handle.run, handle.attempt, handle.element)
            stuck = [_since(self._stuck_since, pod.uid, pod.stuck) for pod in pods]
            waits = job is not None and not pods and not job.suspended
            podless = _since(self._podless_since, job.uid if job else "", waits)
            status = status_of(
                job,
                pods,
                handle.element,
                at.events,
                patient=max(stuck, default=0.0) < at.settings.pull_grace,
                slow=podless >= SLOW,
            )
            last = newest(pods)
            failed = status.state is State.FAILED and status.cause is not Cause.REFUSED
            lives = failed and last is not None and last.may_run
            unseen = job is not None and not any(pod.ended or pod.ready for pod in pods)
            if lives or (unseen and status.state.terminal):
                since = self._unconfirmed_since.setdefault(handle, job.seen_at if job else now)
                ending = lives and now - since < at.settings.grace + ENDING
                if ending or at.watcher.listed(handle.run) <= since:
                    unconfirmed[handle] = since
                    status = Status(State.RUNNING, message="has ended; its pod is still awaited")
            else:
                self._unconfirmed_since.pop(handle, None)
            found[handle] = status
        _refuse_alike(found, at.watcher)
        return found, unconfirmed

    def fetch(self, task: Task, handles: Sequence[Handle]) -> Mapping[Handle, Fetched]:
        """From termination messages, pods that hold a result, and stores: a few side by side."""
        from clustrix_containers.clusters.fetching import fetch_each

        return fetch_each(self._fetch, task, handles)

    def _fetch(self, task: Task, handle: Handle, expected: Expected) -> Fetched:
        at = self._connected
        if at.settings.volume and directory.arrived(expected):
            return Fetched()
        pods = self._pods(at, handle)
        # Where the Job's report counts, the pods have been listed since.
        if (
            not any(pod.ended or pod.ready for pod in pods)
            and handle not in self._unconfirmed_since
        ):
            at.watcher.refresh(handle.run)
            pods = self._pods(at, handle)
        for pod in pods:
            whole = at.watcher.reread(pod) if pod.trimmed else pod
            message = take.message_of(whole, expected)
            if isinstance(message, delivery.Inline):
                delivery.put(expected, message)
                at.watcher.trim(pod)
                return Fetched()
            if message is not None:
                fetched = self._from_store(at, task, expected, message)
                at.watcher.trim(pod)
                return fetched
            if pod.ready and not pod.ended:
                at.taker.take(pod, expected)
                return Fetched()
        if at.settings.volume and pods and all(pod.exit_code for pod in pods):
            # A worker that had written there would have reported it.
            return Fetched(grace=0.0)
        # No pod has a message; a store keeps the outcome all the same.
        return self._from_store(at, task, expected, None)

    def _from_store(
        self, at: _Connection, task: Task, expected: Expected, stored: delivery.Stored | None
    ) -> Fetched:
        from clustrix_containers.results.stores import check_kind

        store, volume = at.settings.results, at.settings.volume
        if store is None or (stored is not None and stored.kind == "hold"):
            return Fetched()
        check_kind(store, expected, stored)
        if volume is None:
            store.fetch(expected, stored, task.image)
            return Fetched()
        if volume.mount is None:
            arrived = at.reader(task.image, expected.run).fetch(expected, stored)
        else:
            arrived = volume.fetch(expected, stored, task.image)
        if arrived:
            return Fetched()
        # A shared file system shows late what another machine has written.
        return Fetched(grace=UNNAMED_GRACE if stored is None else NAMED_GRACE)

    def logs(
        self, handles: Sequence[Handle], *, follow: bool = False
    ) -> Iterator[tuple[Handle, bytes]]:
        at = self._connected
        for handle in handles:

            def find(handle: Handle = handle) -> tuple[PodView | None, bool]:
                status = self.states([handle])[handle]
                pods = self._pods(at, handle)
                done = next((pod for pod in pods if pod.exit_code == 0), None)
                return done or newest(pods), status.state.terminal

            for line in logs.read(at.api, find, follow=follow):
                yield handle, line

    def cancel(self, handles: Sequence[Handle]) -> None:
        runs: dict[str, dict[int, set[int]]] = {}
        for it in handles:
            runs.setdefault(it.run, {}).setdefault(it.attempt, set()).add(it.element)
        for run, attempts in runs.items():
            submit.cancel(self._connected.api, run, attempts)

    def find(self, run: str) -> DiscoveredRun | None:
        """All that is needed to attach is in the run's Jobs and its Secret."""
        return submit.find(self._connected.api, self._connected.settings, run)

    def prune_cache(self, older_than: float) -> None:
        """Nothing is kept there for speed."""

    def _pods(self, at: _Connection, handle: Handle) -> list[PodView]:
        """An element's pods, those that show how it ended first, then the newest."""
        at.watcher.ensure()
        pods = at.watcher.pods(handle.run, handle.attempt, handle.element)
        return sorted(
            pods, key=lambda it: (it.exit_code == 0, it.ended, it.ready, it.created), reverse=True
        )


class _Connection:
    """All that lives as long as this process talks to the cluster: closed when it exits."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self.api, self.settings = api, settings
        self.events = Events(api)
        self.watcher = Watcher(api)
        self.taker = take.Taker(api)
        self._readers: dict[str, Reader] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        atexit.register(self._close)

    def reader(self, image: str, run: str) -> Reader:
        """The one reader of a run in this process."""
        with self._lock:
            if run not in self._readers:
                self._readers[run] = Reader(self.api, self.settings, self.events, image, run)
            return self._readers[run]

    def _close(self) -> None:
        if os.getpid() != self._process:
            return  # a fork: readers and releases are its parent's
        self.taker.close()
        for reader in list(self._readers.values()):
            reader.delete(timeout=3.0)


def _since(times: dict[str, float], uid: str, holds: bool) -> float:
    """For how many seconds something holds for an object, as seen here."""
    if not holds:
        times.pop(uid, None)
        return 0.0
    now = time.monotonic()
    return now - times.setdefault(uid, now)


def _end_left_over(at: _Connection, handle: Handle) -> None:
    """Delete a pod that its failed Job has left: one that was just made when the deadline passed.

    The Job's controller (of 1.20) does not know it yet then, and looks at the Job no more.
    """
    job = at.watcher.job(handle.run, handle.attempt, handle.element)
    for pod in at.watcher.pods(handle.run, handle.attempt, handle.element):
        if job is not None and job.condition == "Failed" and not (pod.ended or pod.deleted):
            at.api.delete("pod", pod.name)


def _refuse_alike(found: dict[Handle, Status], watcher: Watcher) -> None:
    """Elements of a run have one image: where none has begun, what one cannot start none can."""
    refused: dict[tuple[str, int], Status] = {}
    for handle, status in found.items():
        attempt = handle.run, handle.attempt
        refuses = status.cause is Cause.REFUSED and attempt not in refused
        if refuses and not watcher.has_begun(*attempt):
            refused[attempt] = status
    for handle, status in found.items():
        if status.state is State.PENDING and (handle.run, handle.attempt) in refused:
            found[handle] = refused[handle.run, handle.attempt]
