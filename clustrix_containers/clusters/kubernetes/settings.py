"""The options of a Kubernetes target, checked; and those of one call over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.errors import ClusterError, ConfigError
from clustrix_containers.results.stores import ResultStore, parse_results
from clustrix_containers.results.stores.volume import VolumeStore

HELD = ("auto", "hold")
"""``results`` of a target whose containers hold what does not fit into a termination message."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a target's pods and Jobs are to be. Durations are in seconds.

    ``pod_template`` are merged over ours, one after the other. ``user`` is ``None`` where the
    cluster chooses the uid. ``results`` is where results go that do not fit into a termination
    message; ``None``: the container holds them until the client has them.
    """

    namespace: str
    pull_secret: str | None = None
    queue: str | None = None
    service_account: str | None = None
    priority_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    pod_template: Sequence[Mapping[str, Any]] = ()
    gpu_resource: str = "nvidia.com/gpu"
    user: int | None = 65532
    ttl: int = 3 * 86400
    deadline: int | None = None
    hold: int = 3600
    pull_grace: float = 60.0
    grace: float = 5.0
    results: ResultStore | None = None

    @property
    def volume(self) -> VolumeStore | None:
        """The volume claim that the pods write results to."""
        return self.results if isinstance(self.results, VolumeStore) else None

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These, with the options of one call over them.

        ``node_selector`` and ``pod_template`` are merged, everything else is replaced.
        ``ClusterError`` (``option``) for one that a call cannot have.
        """
        for name in options:
            if name not in CALL_OPTIONS:
                raise ClusterError(
                    f"unknown option {name!r} of a call for Kubernetes",
                    hint=f"Its options are: {', '.join(CALL_OPTIONS)}.",
                    option=name,
                )
        changes = check(options)
        if "node_selector" in changes:
            changes["node_selector"] = {**self.node_selector, **changes["node_selector"]}
        if "pod_template" in changes:
            changes["pod_template"] = (*self.pod_template, *changes["pod_template"])
        return replace(self, **changes)


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as fields of :class:`Settings`; ``ClusterError`` (``option``) for a wrong value."""
    return {name: _CHECKS[name](name, value) for name, value in options.items()}


def _is(kind: str, valid: Callable[[Any], bool], empty: Any = None) -> Callable[[str, Any], Any]:
    """A check that takes a value as it is; ``empty`` for ``None``, where that is left out."""

    def check(name: str, value: Any) -> Any:
        if not valid(value):
            raise ClusterError(f"{name}: {value!r} is not {kind}", option=name)
        return empty if value is None else value

    return check


def _seconds(name: str, value: object) -> float:
    try:
        return parse_duration(value)
    except ConfigError as error:
        raise ClusterError(f"{name}: {error.message}", hint=error.hint, option=name) from error


def _whole_seconds(name: str, value: object) -> int:
    return int(_seconds(name, value))


_text = _is("a name", lambda it: it is None or (isinstance(it, str) and it != ""))
_mapping = _is("a mapping", lambda it: it is None or isinstance(it, Mapping), empty={})
_user = _is("a uid above 0, or any", lambda it: it == "any" or (isinstance(it, int) and it > 0))
_CALL_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "queue": _text,
    "service_account": _text,
    "priority_class": _text,
    "node_selector": _mapping,
    "tolerations": _is(
        "a list of mappings",
        lambda it: isinstance(it, list | tuple) and all(isinstance(one, Mapping) for one in it),
    ),
    "affinity": _mapping,
    "pod_template": lambda name, value: (_mapping(name, value),) if value else (),
    "gpu_resource": _text,
    "ttl": _whole_seconds,
    "deadline": lambda name, value: None if value is None else _whole_seconds(name, value),
    "hold": _whole_seconds,
}
CALL_OPTIONS = tuple(_CALL_CHECKS)
"""What one call may have of its own."""
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **_CALL_CHECKS,
    "pull_secret": _text,
    "pull_grace": _seconds,
    "grace": lambda name, value: 0.0 if value == 0 else _seconds(name, value),
    "user": lambda name, value: None if _user(name, value) == "any" else value,
    "results": lambda _, value: parse_results(value, own=HELD),
}
