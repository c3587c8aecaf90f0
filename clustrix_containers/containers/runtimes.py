"""Which runtimes this machine has, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass

from clustrix_containers.errors import ClusterError

from .process import Runtime

ORDER = ("docker", "apptainer", "sandbox")
MEANS = ("bubblewrap", "namespaces")
"""The sandbox by one of its ways in particular."""


@dataclass(frozen=True, slots=True)
class Available:
    """Whether a runtime can be used here; ``reason`` is a sentence either way."""

    runtime: str
    ok: bool
    reason: str
    means: str = ""


def check(runtime: str) -> Available:
    """Try one runtime out. ``ClusterError`` for a name that is none."""
    if runtime == "docker":
        from . import docker

        why = docker.unusable()
        return Available(runtime, why is None, why or "the engine answers")
    if runtime == "apptainer":
        from . import apptainer

        why = apptainer.unusable()
        return Available(runtime, why is None, why or "it starts")
    if runtime in ("sandbox", *MEANS):
        from . import sandbox

        means, reason = sandbox.means(runtime if runtime in MEANS else None)
        return Available("sandbox", means is not None, reason, means or "")
    known = ", ".join(("auto", *ORDER, *MEANS))
    raise ClusterError(f"unknown runtime {runtime!r}", hint=f"It is one of {known}.")


def available() -> list[Available]:
    """All runtimes, in the order in which ``auto`` takes the first that works."""
    return [check(runtime) for runtime in ORDER]


def choose(runtime: str) -> Available:
    """The runtime by name, or the first that works for ``auto``.

    ``ClusterError`` with the way out if it, or none at all, can be used here.
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
    raise ClusterError(f"no container can be run on this machine: {reasons}", hint=hint)


def open_runtime(runtime: str, means: str) -> Runtime:
    """What starts containers, for the supervisor. The choice has been made before."""
    if runtime == "docker":
        from .docker import Docker

        return Docker()
    if runtime == "apptainer":
        from .apptainer import Apptainer

        return Apptainer()
    from .sandbox import Sandbox

    return Sandbox(means)
