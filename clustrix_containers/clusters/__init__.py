"""The seam: what runs a task's elements. A new cluster is one folder and one entry-point line.

Entry points: group ``clustrix_containers.clusters``, name the target's ``type`` in
``clustrix.yml``, value a class or function that takes the target's options as keywords and
gives a :class:`Cluster`.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clustrix_containers.api.status import Status
from clustrix_containers.errors import ClusterError

from .task import Capabilities, DiscoveredRun, Fetched, Handle, Task

if TYPE_CHECKING:
    # A supervisor of the local target imports this package: it starts for each run.
    from clustrix_containers.oci.model import Image
    from clustrix_containers.remote.progress import Progress

GROUP = "clustrix_containers.clusters"
_BUILT_IN = {
    "local": "clustrix_containers.clusters.local:LocalCluster",
    "kubernetes": "clustrix_containers.clusters.kubernetes:KubernetesCluster",
}

Notify = Callable[[Iterable[int] | None], None]
"""Called with the elements of a run whose status may have changed, or ``None``: any of them."""


class Cluster(Protocol):
    """One target in this process: shared by all runs, called from several threads at once.

    Its verbs are plural over opaque handles. It decides nothing about absent, unknown, lost or
    late elements: it reports what it sees (``State.ABSENT``, ``State.UNKNOWN``, a cause), and
    :mod:`clustrix_containers.runs` decides for all clusters alike.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; asked before anything is built. ``ClusterError`` if it is unreachable."""

    @property
    def poll_interval(self) -> tuple[float, float]:
        """Seconds between two calls of ``states``: while things change, and while nothing does."""

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``ClusterError`` (with ``option``) unless these may be given at the call, as in
        ``.options(kubernetes={…})``. Asked before anything is built."""

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """What this target needs: name, whether it is there, a sentence. For ``doctor``."""

    def stage(self, image: Image, *, repository: str | None, progress: Progress) -> str:
        """Put the image where the nodes find it; the reference that they run.

        ``repository`` is where the user wants it pushed; never ``None`` where
        ``capabilities.images`` is ``registry``. Staging what is there already sends nothing.
        """

    def describe(self, task: Task) -> str:
        """What ``submit`` will choose for a task and its results, in a sentence or two, if anything."""

    def preview(self, task: Task) -> str:
        """What ``submit`` would create, as a person writes it (YAML, a script); nothing secret."""

    def submit(self, task: Task) -> Sequence[Handle]:
        """Start a task; the handles of its elements, in the order of ``task.elements``.

        Idempotent: the same run and attempt again gives the same handles and starts nothing.
        ``ClusterError`` if it cannot be started; then nothing runs.
        """

    def states(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        """The status of each element, of any runs. A query that fails gives ``UNKNOWN``;
        ``ABSENT`` is only for what a successful query does not know."""

    def subscribe(self, run: str, notify: Notify) -> Callable[[], None]:
        """Call ``notify`` when ``states`` may answer differently; what is polled need not.

        What is returned ends it.
        """

    def fetch(self, task: Task, handles: Sequence[Handle]) -> Mapping[Handle, Fetched]:
        """Bring ended elements' marks and results into ``task.directory/results``.

        One call for all that have ended, so that connections are shared; an element's error is a
        value and stops no other. Nothing happens where the directory is shared anyway. A handle
        that is missing from the answer counts as ``Fetched()``.
        """

    def find(self, run: str) -> DiscoveredRun | None:
        """A run that is not in this user's record, if the cluster has all that is needed to attach to it."""

    def logs(
        self, handles: Sequence[Handle], *, follow: bool = False
    ) -> Iterator[tuple[Handle, bytes]]:
        """What the elements printed, in pieces, one element after the other; with ``follow``
        each until it ends."""

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Ask for an end: SIGTERM, a grace, SIGKILL. Returns at once; ended elements stay so."""

    def prune_cache(self, older_than: float) -> None:
        """Remove what is kept for speed and has not been used for so many seconds.

        Only called while nothing of this user's runs there.
        """


_lock = threading.Lock()
_open: dict[tuple[int, str, str], Cluster] = {}


def open_cluster(type: str, options: Mapping[str, Any]) -> Cluster:  # noqa: A002
    """The cluster of a target with these options: one object per target and process.

    ``ClusterError`` names the known types, or the option that it does not take.
    """
    # A forked child has none of its parent's threads and connections.
    key = (os.getpid(), type, json.dumps(options, sort_keys=True, default=str))
    with _lock:
        if key not in _open:
            _open[key] = _make(type, options)
        return _open[key]


def _make(name: str, options: Mapping[str, Any]) -> Cluster:
    factory = _factory(name)
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            raise ClusterError(
                f"a target of type {name!r} has no option {option!r}",
                hint=f"Its options are: {', '.join(accepted)}.",
                option=option,
            )
    return factory(**options)


def is_cluster_type(name: str) -> bool:
    """Whether ``clustrix.yml`` may name this type."""
    from importlib.metadata import entry_points

    return name in _BUILT_IN or any(point.name == name for point in entry_points(group=GROUP))


def _factory(name: str) -> Callable[..., Cluster]:
    from importlib.metadata import EntryPoint, entry_points

    if name in _BUILT_IN:
        built_in: Callable[..., Cluster] = EntryPoint(name, _BUILT_IN[name], GROUP).load()
        return built_in
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({*_BUILT_IN, *found}))
        raise ClusterError(f"unknown target type {name!r}", hint=f"Known types: {known}.")
    try:
        factory: Callable[..., Cluster] = found[name].load()
    except Exception as error:
        raise ClusterError(
            f"the target type {name!r} cannot be loaded from {found[name].value}: {error}"
        ) from error
    return factory
