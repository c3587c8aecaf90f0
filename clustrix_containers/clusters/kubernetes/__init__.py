"""The Kubernetes target: a run is a Job, or an Indexed Job, of its image's digest.

Nothing of ours is installed in the cluster. The Job's name is the run's, so that submitting
again finds it; the run's key is a Secret that the Job owns. Ids read
``NAMESPACE/RUN/ATTEMPT.ELEMENT``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Tell
from clustrix_containers.clusters.task import Found, Task
from clustrix_containers.errors import ClusterError, ResultLost

from .api import Api, connect
from .settings import Settings, results_option, seconds
from .status import JOB_DELETED, JobView, PodView, deletion, judge, newest
from .watch import Watcher, watcher

if TYPE_CHECKING:
    from clustrix_containers.results.inline import Stored

APPEARS = 10.0
"""Seconds within which the watch has heard of a Job that was made."""
SEEN_LATE, FOUND_LATE = 75.0, 15.0
"""Seconds for which a file of a volume is waited for: one that a pod has named, and any."""
SLOW = 3.0
"""Seconds after which a Job is asked why it has no pods."""

_ID = re.compile(r"([^/]+)/([^/]+)/(\d+)\.(\d+)")


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
        grace: float = 5.0,
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
        if not (isinstance(user, int) and user > 0) and user != "any":
            raise ClusterError(
                f"user is {user!r}", hint="It is a uid above 0, or any.", option="user"
            )
        self._kubeconfig = Path(kubeconfig) if kubeconfig is not None else None
        self._context, self._namespace = context, namespace
        self._settings = Settings(
            namespace="",
            pull_secret=pull_secret,
            queue=queue,
            service_account=service_account,
            priority_class=priority_class,
            node_selector=node_selector or {},
            tolerations=tolerations,
            affinity=affinity or {},
            overlay=pod_template or {},
            gpu=gpu_resource,
            user=user if isinstance(user, int) else None,
            ttl=int(seconds(ttl, "ttl")),
            deadline=None if deadline is None else int(seconds(deadline, "deadline")),
            hold=int(seconds(hold, "hold")),
            pull_grace=seconds(pull_grace, "pull_grace"),
            grace=grace,
            results=results_option(results),
        )
        self._since: dict[str, float] = {}
        self._unsure: dict[str, float] = {}
        """Since when an element's end is known by its Job alone."""

    poll_interval = (0.5, 10.0)
    pulls = True

    @property
    def settings(self) -> Settings:
        return replace(self._settings, namespace=self._api.namespace)

    @property
    def _api(self) -> Api:
        return connect(self._kubeconfig, self._context, self._namespace)

    @property
    def _watcher(self) -> Watcher:
        api = self._api
        return watcher(api, api.namespace)

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """Reachability, version, permissions, pull secret, quota, and the server's opinion of a Job."""
        from .doctor import findings

        return findings(self)

    def choices(self, task: Task) -> str:
        """What the server's version and the target's options make of it, and where results go."""
        from . import stores

        return f"{self._api.server.describe(len(task.elements))}. {stores.describe(self.settings)}"

    def preview(self, task: Task) -> str:
        """The objects that :meth:`submit` would make, as YAML, without what is secret."""
        import yaml

        from .submit import plan

        objects = yaml.safe_dump_all(plan(self._api, self.settings, task), sort_keys=False)
        return f"# {self.choices(task)}\n{objects}"

    def submit(self, task: Task) -> Sequence[str]:
        """Make the Job and its Secret; what is there already is taken as it is."""
        from .submit import submit

        submit(self._api, self.settings, task)
        prefix = f"{self._api.namespace}/{task.run}/{task.attempt}"
        return [f"{prefix}.{element}" for element in task.elements]

    def subscribe(self, run: str, tell: Tell) -> Callable[[], None]:
        return self._watcher.follow(run, tell)

    def states(self, ids: Sequence[str]) -> Mapping[str, Status]:
        """Asks nobody: the watch knows. UNKNOWN if it has heard nothing for long."""
        watching = self._watcher
        try:
            watching.look()
        except ClusterError as error:
            return dict.fromkeys(ids, Status(State.UNKNOWN, message=error.message))
        found, unsure = self._judge(ids, watching)
        late = [name for name, since in unsure.items() if watching.has_caught_up(since)]
        try:
            for run in {_parse(name)[0] for name in late}:
                watching.refresh(run)
        except ClusterError:
            return {**found, **dict.fromkeys(late, Status(State.UNKNOWN))}
        return {**found, **self._judge(late, watching)[0]}

    def _judge(
        self, ids: Sequence[str], watching: Watcher
    ) -> tuple[dict[str, Status], Mapping[str, float]]:
        """The states; and which of them rest on the Job's word, with no pod that bears it out.

        For so long the watch of pods is behind that of Jobs, or the pod is gone.
        """
        found: dict[str, Status] = {}
        unsure: dict[str, float] = {}
        for name in ids:
            run, attempt, element = _parse(name)
            own = watching.pods(run, attempt, element)
            job = watching.job(run, attempt, element)
            status = judge(job, own, element, patient=self._patient(own))
            if status is None:
                found[name] = self._deleted(name)
                continue
            self._since.pop(name, None)
            status = self._explained(status, job, own, watching)
            if job and status.state.terminal and not any(pod.ended or pod.ready for pod in own):
                since = self._unsure.setdefault(name, job.heard)
                if watching.listed(run) <= since:
                    unsure[name] = since
                    status = Status(State.RUNNING, message="has ended; its pod says how")
            else:
                self._unsure.pop(name, None)
            found[name] = status
        _refuse_alike(found, watching)
        return found, unsure

    def fetch(self, id: str, directory: Path, image: str) -> None:  # noqa: A002
        """Bring an element's mark and result into ``directory``, from wherever they are."""
        from clustrix_containers.results import arrival, inline

        from . import take

        run, attempt, element = _parse(id)
        api, key = self._api, (directory / "key").read_bytes()
        claim = self._settings.claim
        if claim and arrival.arrived(directory, element, attempt, key=key, run=run):
            return
        pods = self._pods(run, attempt, element)
        # Where the Job's word counts, the pods have been asked for since.
        if not any(pod.ended or pod.ready for pod in pods) and id not in self._unsure:
            self._watcher.refresh(run)
            pods = self._pods(run, attempt, element)
        for pod in pods:
            said = take.said_by(self._watcher.reread(pod) if pod.trimmed else pod, run)
            if isinstance(said, inline.Inline):
                inline.put(directory, element, attempt, said.mark, said.result, key=key, run=run)
                self._watcher.taken(pod)
                return
            if said is not None:
                self._fetch(id, said, directory, image)
                self._watcher.taken(pod)
                return
            if pod.ready and not pod.ended:
                take.from_pod(api, api.namespace, pod, directory, run=run, key=key)
                return
        if claim and pods and all(pod.exit_code for pod in pods):
            # Whoever had written there would have said so.
            return
        # No pod tells of it any more; a store keeps it all the same.
        self._fetch(id, None, directory, image)

    def _fetch(
        self,
        name: str,
        said: Stored | None,
        directory: Path,
        image: str,
    ) -> None:
        from . import stores

        run, attempt, element = _parse(name)
        place = (element, attempt, directory, (directory / "key").read_bytes())
        if stores.fetch(self._api, self.settings, image, run, said, *place):
            return
        claim = self._settings.claim
        if not claim or (said is not None and said.kind != "volume"):
            return
        # A shared file system shows late what another machine has written.
        if self._seconds_since(f"{name} late") < (FOUND_LATE if said is None else SEEN_LATE):
            raise ClusterError(
                f"the result of element {element} is not to be seen on the volume claim {claim} yet",
                temporary=True,
            )
        if said is not None:
            raise ResultLost(
                f"the result of element {element} is not on the volume claim {claim} any more",
                hint="Somebody has deleted it.",
                element=element,
                run=run,
            )

    def logs(self, id: str, *, follow: bool = False) -> Iterator[bytes]:  # noqa: A002
        from . import logs

        run, attempt, element = _parse(id)

        def find() -> tuple[PodView | None, bool]:
            status = self.states([id])[id]
            pods = self._pods(run, attempt, element)
            done = next((pod for pod in pods if pod.exit_code == 0), None)
            return done or newest(pods), status.state.terminal

        return logs.follow(self._api, self._api.namespace, find, wait=follow)

    def cancel(self, ids: Sequence[str]) -> None:
        from .cancel import cancel

        wanted: dict[str, dict[int, set[int]]] = {}
        for name in ids:
            run, attempt, element = _parse(name)
            wanted.setdefault(run, {}).setdefault(attempt, set()).add(element)
        for run, elements in wanted.items():
            cancel(self._api, self._api.namespace, run, elements)

    def find(self, run: str) -> Found | None:
        """Everything that is needed to attach lies in the run's Jobs and its Secret."""
        from .submit import find

        return find(self._api, self.settings, run)

    def tidy(self, older_than: float) -> None:
        """Nothing is kept there for speed."""

    def _pods(self, run: str, attempt: int, element: int) -> list[PodView]:
        """An element's pods, those that say how it ended first, then the newest."""
        self._watcher.look()
        pods = self._watcher.pods(run, attempt, element)
        return sorted(
            pods, key=lambda it: (it.exit_code == 0, it.ended, it.ready, it.created), reverse=True
        )

    def _deleted(self, name: str) -> Status:
        """Neither Job nor pod is there: it was made a moment ago, or somebody has deleted it."""
        if self._seconds_since(name) < APPEARS:
            return Status(State.PENDING)
        return Status(State.FAILED, Cause.DELETED, None, JOB_DELETED)

    def _patient(self, pods: Sequence[PodView]) -> bool:
        """Whether those that cannot start have been so for less than the grace, as seen here."""
        for pod in pods:
            if not pod.stuck:
                self._since.pop(pod.uid, None)
        stuck = [self._seconds_since(pod.uid) for pod in pods if pod.stuck]
        return max(stuck, default=0.0) < self._settings.pull_grace

    def _explained(
        self, status: Status, job: JobView | None, pods: Sequence[PodView], watching: Watcher
    ) -> Status:
        """With the cluster's words, where neither Job nor pod has them: asked once for all."""
        if status.state is State.PENDING and job and not pods and not job.suspended:
            if self._seconds_since(job.uid) < SLOW:
                return status
            return replace(
                status, message=watching.refusals.of(job.uid, job.name) or status.message
            )
        if job is not None:
            self._since.pop(job.uid, None)
        last = newest(pods)
        if last is not None and last.reason == "ImagePullBackOff" and last.reason in status.message:
            said = watching.failures.of(last.uid, last.name)
            text = f"its image cannot be pulled: {said}"
            return replace(status, message=text) if said else status
        cut = next((pod for pod in pods if pod.cut_off and deletion(pod) in status.message), None)
        if cut is None:
            return status
        # Before 1.26 only events tell by what.
        if said := watching.preemptions.of(cut.uid, cut.name):
            why = f"was preempted: {said}"
        elif watching.evictions.of(cut.uid, cut.name):
            why = f"its node {cut.node} was lost, or tainted"
        else:
            return status
        return replace(status, message=status.message.replace(deletion(cut), why))

    def _seconds_since(self, key: str) -> float:
        """Since this was first asked about it."""
        now = time.monotonic()
        return now - self._since.setdefault(key, now)


def _refuse_alike(found: dict[str, Status], watching: Watcher) -> None:
    """Elements of a run have one image: where none has begun, what one cannot start none can."""
    refused: dict[tuple[str, int], Status] = {}
    for name, status in found.items():
        if status.cause is Cause.REFUSED:
            run, attempt, _ = _parse(name)
            if (run, attempt) not in refused and not any(
                pod.started or pod.ended for pod in watching.all_pods(run, attempt)
            ):
                refused[run, attempt] = status
    if refused:
        for name, status in found.items():
            run, attempt, _ = _parse(name)
            if status.state is State.PENDING and (run, attempt) in refused:
                found[name] = refused[run, attempt]


def _parse(name: str) -> tuple[str, int, int]:
    match = _ID.fullmatch(name)
    if match is None:
        raise ClusterError(f"{name!r} is not the id of an element of a Kubernetes target")
    return match[2], int(match[3]), int(match[4])
