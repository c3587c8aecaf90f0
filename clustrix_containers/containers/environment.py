"""The variables that the worker reads, and how the time limits of worker and cluster fit together."""

from __future__ import annotations

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
