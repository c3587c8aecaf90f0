"""The stores that a target's option ``results`` can name: S3, a registry, a volume.

``results: NAME`` or ``results: {NAME: {option: value}}``. A store holds its own client, which all
elements of all runs share; its methods may be called from several threads at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Protocol

from clustrix_containers.api.quantities import parse_duration
from clustrix_containers.errors import ClusterError, ConfigError
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.outcome import Expected


class ResultStore(Protocol):
    """Where results go that do not fit into a termination message."""

    @property
    def kind(self) -> str: ...

    def open(self, run: str, image: str, seconds: float) -> Mapping[str, Any]:
        """``store`` of ``run/deliver`` (:mod:`clustrix_containers.worker.contract`) for a run.

        ``image`` is the reference that runs, ``seconds`` for how long the access that a container
        gets must last at least. ``ClusterError`` if no such access can be given.
        """
        ...

    def fetch(self, expected: Expected, stored: Stored | None, image: str) -> bool:
        """Bring an outcome into the run's directory; False if the store has none.

        ``stored`` is what the termination message named; without it (its pod is gone) the store
        is searched. ``ResultLost`` if the store no longer has what was named, ``ResultError`` if
        that is not what this run's worker wrote, ``ClusterError`` or ``RegistryError`` if the
        store cannot be read (``temporary`` if that may pass).
        """
        ...

    def describe(self) -> str:
        """Where larger results go, in half a sentence: "larger ones …"."""
        ...


_STORES = {"s3": "S3Store", "registry": "RegistryStore", "volume": "VolumeStore"}
"""The module of each and its class, imported where it is used: they need libraries."""


def kind_of(option: object) -> str | None:
    """The kind of the store that a target's option ``results`` names; ``None`` if none."""
    name, _ = _split(option)
    return name if isinstance(name, str) and name in _STORES else None


def parse_results(option: object, *, own: Sequence[str] = ()) -> ResultStore | None:
    """The store that a target's option ``results`` names.

    ``own`` are further names, for what the target does without a store: None. ``ClusterError``
    (``option``) if the option is not valid.
    """
    name, options = _split(option)
    if isinstance(name, str) and name in (*own, *_STORES) and isinstance(options, Mapping | None):
        if name in _STORES:
            return _make(name, options or {})
        if not options:
            return None
    raise invalid(
        f"{option!r} is not a result store",
        f"Expected one of {', '.join((*own, *_STORES))}, or one of these with its options, as in"
        " results: {s3: {bucket: my-bucket}}.",
    )


def check_kind(store: ResultStore, expected: Expected, stored: Stored | None) -> None:
    """``ClusterError`` (``option``) if an outcome was stored in another kind of store than this."""
    if stored is not None and stored.kind != store.kind:
        raise ClusterError(
            f"the result of element {expected.element} is in a store of kind {stored.kind!r},"
            f" and the target's results are in {store.kind!r}",
            hint="Name the store of the run (results:) in clustrix.yml.",
            option="results",
        )


def _split(option: object) -> tuple[object, object]:
    """The name in a target's option ``results``, and the options given with it."""
    if isinstance(option, Mapping) and len(option) == 1:
        ((name, options),) = option.items()
        return name, options
    return option, None


def _make(name: str, options: Mapping[str, Any]) -> ResultStore:
    factory: Any = getattr(importlib.import_module(f".{name}", __package__), _STORES[name])
    known = [item for item in fields(factory) if item.init]
    hint = f"Its options are {', '.join(item.name for item in known)}."
    for option in options:
        if option not in {item.name for item in known}:
            raise invalid(f"{name}: unknown option {option!r}", hint)
    for item in known:
        if item.default is MISSING and item.name not in options:
            raise invalid(f"{name}: option {item.name!r} is missing", hint)
    given = dict(options)
    if "expires" in given:
        try:
            given["expires"] = parse_duration(given["expires"])
        except ConfigError as error:
            raise invalid(f"{name}: expires: {error.message}", error.hint) from error
    made: ResultStore = factory(**given)
    return made


def invalid(text: str, hint: str | None) -> ClusterError:
    """The error for an option ``results`` that cannot be used."""
    return ClusterError(f"results: {text}", hint=hint, option="results")
