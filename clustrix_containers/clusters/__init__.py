"""Targets: what runs a task's elements. A new one is a module and an entry-point line.

Entry points: group ``clustrix_containers.clusters``, name the target's ``type`` in
``clustrix.yml``, value a class or function that takes the target's options as keywords and
gives a :class:`Cluster`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clustrix_containers.api.status import Status
from clustrix_containers.errors import ClusterError

from .task import Found, Task

GROUP = "clustrix_containers.clusters"
_BUILT_IN = {
    "local": "clustrix_containers.clusters.local:LocalCluster",
    "kubernetes": "clustrix_containers.clusters.kubernetes:KubernetesCluster",
}


Tell = Callable[[Iterable[int] | None], None]
"""Called with the elements of a run that there is news of, or ``None``: it may be about any."""


class Cluster(Protocol):
    """Four plural verbs over opaque ids, which any process may use, at any time."""

    @property
    def poll_interval(self) -> tuple[float, float]:
        """Seconds between two calls of ``states``: while things change, and while nothing does."""
        ...

    @property
    def pulls(self) -> bool:
        """Whether it pulls images from a registry; else it reads the image layout directory."""
        ...

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """What this target needs: name, whether it is there, a sentence. For ``doctor``."""
        ...

    def choices(self, task: Task) -> str:
        """What ``submit`` will choose for a task and its results, in a sentence or two, if anything."""
        ...

    def preview(self, task: Task) -> str:
        """What ``submit`` would make, as a person writes it (YAML, a script); nothing secret."""
        ...

    def submit(self, task: Task) -> Sequence[str]:
        """Start a task; the ids of its elements, in the order of ``task.elements``.

        Idempotent: the same run and attempt again gives the same ids and starts nothing.
        ``ClusterError`` if it cannot be started; then nothing runs.
        """
        ...

    def states(self, ids: Sequence[str]) -> Mapping[str, Status]:
        """How each element is. A query that fails gives ``UNKNOWN``."""
        ...

    def subscribe(self, run: str, tell: Tell) -> Callable[[], None]:
        """Call ``tell`` when ``states`` may answer differently; one that is polled need not.

        What is returned ends it.
        """
        ...

    def fetch(self, id: str, directory: Path, image: str) -> None:  # noqa: A002
        """Bring an ended element's mark and result into ``results/`` of the run's ``directory``.

        ``image`` is that of the run's task. Nothing happens where they are there by themselves, or where there is no outcome.
        ``ResultLost`` says why one that was there cannot be had.
        """
        ...

    def find(self, run: str) -> Found | None:
        """A run that this user's record does not know, if the cluster can tell all about it."""
        ...

    def logs(self, id: str, *, follow: bool = False) -> Iterator[bytes]:  # noqa: A002
        """What the element printed, in pieces; with ``follow`` until it ends."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask for an end: SIGTERM, a grace, SIGKILL. Returns at once; ended elements stay so."""
        ...

    def tidy(self, older_than: float) -> None:
        """Remove what is kept for speed and has not been used for so many seconds.

        Only called while nothing of this user's runs there.
        """
        ...


def open_cluster(type: str, options: Mapping[str, Any]) -> Cluster:  # noqa: A002
    """The target of this type with these options.

    ``ClusterError`` names the known types, or the option that it does not take.
    """
    factory = _factory(type)
    taken = inspect.signature(factory).parameters
    for name in options:
        if name not in taken:
            raise ClusterError(
                f"a target of type {type!r} has no option {name!r}",
                hint=f"Its options are: {', '.join(taken)}.",
                option=name,
            )
    return factory(**options)


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
