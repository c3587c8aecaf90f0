"""The variables that the worker reads, and how the time limits of worker and cluster fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clustrix_containers.worker import contract

OUTER_MARGIN = 5.0
"""Seconds from the end of the worker's own limit and grace until the limit outside it ends the
container: the worker must have had the time to write its mark."""


def worker_environment(
    *,
    run: str,
    attempt: int,
    element: int | None = None,
    cpus: float,
    timeout: float | None,
    grace: float,
) -> dict[str, str]:
    """The worker's variables for one element, as ``worker.contract`` defines them.

    ``element`` is ``None`` where the cluster sets it itself (an Indexed Job). ``cpus`` in cores,
    ``timeout`` (``None``: no limit) and ``grace`` in seconds. They take precedence over a user's
    variables of the same names.
    """
    values = {
        contract.ENV_RUN: run,
        contract.ENV_ATTEMPT: str(attempt),
        contract.ENV_CPUS: f"{cpus:.12g}",
        contract.ENV_GRACE: f"{grace:.12g}",
    }
    if element is not None:
        values[contract.ENV_ELEMENT] = str(element)
    if timeout is not None:
        values[contract.ENV_TIMEOUT] = f"{timeout:.12g}"
    return values


def outer_limit(timeout: float | None, grace: float) -> float | None:
    """Seconds after which a limit outside the worker may end the container; ``None``: no limit."""
    return None if timeout is None else timeout + grace + OUTER_MARGIN


_DEFAULTS = {
    "PATH": f"{contract.VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",  # noqa: S108
    "USER": "clustrix",
    "LOGNAME": "clustrix",
}


def container_environment(image_env: Sequence[str], user_env: Mapping[str, str]) -> dict[str, str]:
    """All variables of a container but the worker's, for runtimes that add none themselves.

    Later ones win: defaults, the image's (``NAME=VALUE``), the user's. Nothing is inherited from
    the caller. Images of ours have theirs from :mod:`clustrix_containers.image.build`.
    """
    image = dict(item.partition("=")[::2] for item in image_env)
    return {**_DEFAULTS, **image, **user_env}
