"""Where a run goes: decided once per call, and everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from clustrix_containers.api.options import Options, Resources
from clustrix_containers.clusters import Cluster, is_cluster_type, open_cluster
from clustrix_containers.config import file as configuration
from clustrix_containers.errors import ClusterError, ConfigError
from clustrix_containers.results.stores import kind_of

RESOURCES = tuple(item.name for item in fields(Resources))
"""The options of a target that say what its elements get."""

_NOT_THE_CLUSTERS = (*RESOURCES, "registry")
"""The options of a target that its cluster does not know."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A target of the configuration, its cluster in this process, and what elements get there.

    ``repository`` is where images are pushed, ``None`` where the cluster reads the image layout
    directory. ``options`` are those of the call for this type of cluster alone.
    """

    config: configuration.Config
    target: configuration.Target
    cluster: Cluster
    resources: Resources
    repository: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def check_count(self, count: int, options: Options) -> None:
        """ClusterError if a run of ``count`` elements cannot be submitted there."""
        able = self.cluster.capabilities
        if able.max_array is not None and count > able.max_array:
            raise ClusterError(
                f"the target {self.target.name!r} takes at most {able.max_array:,} elements at once,"
                f" and these are {count:,}",
                hint="Submit them in several parts.",
            )
        parallel = options.max_parallel
        if parallel is not None and count > parallel and not able.max_parallel:
            raise ClusterError(
                f"the target {self.target.name!r} cannot limit how many elements run at once",
                hint="Leave max_parallel out, or set a quota there.",
            )


def resolve(options: Options) -> Destination:
    """Where a run with these options goes; an error for what its target cannot do."""
    config = configuration.load()
    target = config.target(options.on)
    resources = options.resources(default_resources(config, target.options))
    cluster = open_target(target)
    able = cluster.capabilities
    if options.retries and not able.retries:
        raise ClusterError(
            f"the target {target.name!r} does not run an element again that failed",
            hint="Leave retries out, or submit to a target that has them (kubernetes).",
        )
    if resources.gpus and not able.gpus:
        raise ClusterError(
            f"the target {target.name!r} cannot give GPUs to an element",
            hint="Leave gpus out, or submit to a target that has them.",
        )
    check_results(target, cluster)
    own = _cluster_options(target, cluster, options)
    repository = options.registry or target.options.get("registry") or config.registry
    if able.images == "layout":
        repository = None
    elif not repository:
        raise target.error(
            "registry",
            "its images are put into a registry, and none is named",
            "Set registry: (host[:port]/name) for the target or at the top of clustrix.yml,"
            " or CLUSTRIX_REGISTRY.",
        )
    return Destination(config, target, cluster, resources, repository, own)


def open_target(target: configuration.Target) -> Cluster:
    """The cluster of a target; what its elements get there is not the cluster's to know."""
    own = {key: value for key, value in target.options.items() if key not in _NOT_THE_CLUSTERS}
    try:
        return open_cluster(target.type, own)
    except ClusterError as error:
        option = error.fields.get("option")
        if option is None:
            raise
        raise target.error(option, error.message, error.hint) from error


def check_results(target: configuration.Target, cluster: Cluster) -> None:
    """``ConfigError`` if the target's option ``results`` names a store that its cluster cannot use."""
    kind, able = kind_of(target.options.get("results")), cluster.capabilities.results
    if kind is not None and kind not in able:
        raise target.error(
            "results",
            f"a target of type {target.type!r} cannot store results in {kind!r}",
            f"Its result stores are: {', '.join(able)}." if able else None,
        )


def default_resources(config: configuration.Config, target_options: Mapping[str, Any]) -> Resources:
    """What an element gets where neither decorator nor call says anything."""
    given = {name: target_options[name] for name in RESOURCES if name in target_options}
    return Options(**{**config.resources, **given}).resources(Resources())


def _cluster_options(
    target: configuration.Target, cluster: Cluster, options: Options
) -> Mapping[str, Any]:
    """The call's options for this type of cluster; those for other types do not matter here."""
    for name in options.clusters:
        if not is_cluster_type(name):
            raise ConfigError(f"unknown option {name!r}: no type of target has this name", key=name)
    own = options.clusters.get(target.type, {})
    cluster.check_options(own)
    return own
