"""Which runtimes work on this machine, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

from clustrix_containers.errors import ClusterError

from .container import Runtime

ORDER = ("docker", "apptainer", "sandbox")
METHODS = ("bubblewrap", "namespaces")
"""Names that select the sandbox with one of its methods."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime works here; ``reason`` is a sentence either way.

    ``method``: how the sandbox makes its containers.
    """

    runtime: str
    ok: bool
    reason: str
    method: str = ""

    @property
    def gpus(self) -> bool:
        """Whether it can pass GPUs to containers."""
        return self.runtime != "sandbox"


def check(runtime: str) -> Availability:
    """Try one runtime. ``ClusterError`` for an unknown name."""
    from . import apptainer, docker, sandbox

    if runtime in ("docker", "apptainer"):
        why = docker.unusable() if runtime == "docker" else apptainer.unusable()
        return Availability(runtime, why is None, why or "it works")
    if runtime in ("sandbox", *METHODS):
        method, reason = sandbox.find_method(runtime if runtime in METHODS else None)
        return Availability("sandbox", method is not None, reason, method or "")
    known = ", ".join(("auto", *ORDER, *METHODS))
    raise ClusterError(f"unknown runtime {runtime!r}", hint=f"Expected one of {known}.")


def choose(runtime: str) -> Availability:
    """The runtime by name, or the first that works for ``auto``.

    ``ClusterError`` if it, or none at all, works here.
    """
    tried = []
    for name in ORDER if runtime == "auto" else (runtime,):
        found = check(name)
        if found.ok:
            return found
        tried.append(found)
    reasons = "; ".join(f"{found.runtime}: {found.reason}" for found in tried)
    if runtime == "docker":
        hint = "Start a Docker engine, or point DOCKER_HOST at one; pip install 'clustrix-containers[docker]'."
    elif runtime == "apptainer":
        hint = "Install Apptainer (https://apptainer.org), or choose another runtime."
    else:
        hint = (
            "The sandbox needs user namespaces: apt install bubblewrap; as root"
            " sysctl kernel.unprivileged_userns_clone=1 (Debian), or"
            " kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04). Or install Docker"
            " or Apptainer."
        )
    raise ClusterError(f"this machine cannot run containers: {reasons}", hint=hint)


def open_runtime(runtime: str, method: str) -> Runtime:
    """What starts containers, once :func:`choose` has chosen."""
    if runtime == "docker":
        from .docker import Docker

        return Docker()
    if runtime == "apptainer":
        from .apptainer import Apptainer

        return Apptainer()
    from .sandbox import Sandbox

    return Sandbox(method)
