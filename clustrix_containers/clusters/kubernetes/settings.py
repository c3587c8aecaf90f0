"""The options of a Kubernetes target, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from clustrix_containers.results.volume import Options

STORES = ("auto", "hold", "s3", "registry", "volume")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the lines of a target say about its pods and Jobs. Durations are in seconds.

    ``overlay`` is merged over the pod template last. ``results`` says where results go that
    do not fit into a termination message: ``{"kind": …}`` and that store's own options.
    """

    namespace: str
    pull_secret: str | None = None
    queue: str | None = None
    service_account: str | None = None
    priority_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    overlay: Mapping[str, Any] = field(default_factory=dict)
    gpu: str = "nvidia.com/gpu"
    user: int | None = 65532
    ttl: int = 3 * 86400
    deadline: int | None = None
    hold: int = 3600
    pull_grace: float = 60.0
    grace: float = 5.0
    results: Mapping[str, Any] = field(default_factory=lambda: {"kind": "auto"})

    @property
    def claim(self) -> str | None:
        """The volume claim that the pods write results to."""
        return volume(self.results).claim if self.results["kind"] == "volume" else None


def results_option(value: object) -> Mapping[str, Any]:
    """``results:`` of a target: a store by name, or a mapping of one name to its options."""
    if isinstance(value, str) and value in STORES and value != "volume":
        return {"kind": value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, options),) = value.items()
        if kind in STORES and isinstance(options, Mapping | None):
            chosen = {"kind": kind, **(options or {})}
            if kind == "volume":
                volume(chosen)
            return chosen
    raise ClusterError(
        f"results is {value!r}",
        hint=f"It is one of {', '.join(STORES)}, or one of these with its options, as in"
        " results: {s3: {bucket: my-bucket}}.",
        option="results",
    )


def volume(results: Mapping[str, Any]) -> Options:
    """The options of the store ``volume``."""
    from clustrix_containers.results.volume import Options

    try:
        return Options(**{key: value for key, value in results.items() if key != "kind"})
    except TypeError as error:
        raise ClusterError(
            f"results: volume: {str(error).rpartition('__init__() ')[2]}",
            hint="Its options are claim, path and mount.",
            option="results",
        ) from error


def seconds(value: object, option: str) -> float:
    """A duration (``"3d"`` or seconds) of the option."""
    try:
        return parse_duration(value)
    except ConfigError as error:
        raise ClusterError(f"{option}: {error.message}", hint=error.hint, option=option) from error
