"""The volume claim that results go to: whether pods can write to it, and who at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clustrix_containers.errors import ClusterError

from .api import Api
from .settings import Settings, volume


def require(api: Api, settings: Settings) -> None:
    """``ClusterError`` if results cannot go to the claim of the target, or come from there."""
    good, text = inspect(api, settings)
    if not good:
        raise ClusterError(
            text, hint="docs/kubernetes.md says what a claim for results needs.", option="results"
        )


def inspect(api: Api, settings: Settings) -> tuple[bool, str]:
    """Whether the claim will do, and a sentence about it."""
    from kubernetes.client import ApiException

    from clustrix_containers.results.volume import mounted

    options = volume(settings.results)
    name, where = options.claim, f"in {settings.namespace}"
    try:
        mounted(options, "run")
        found = api.call(
            "read the volume claim",
            api.core.read_namespaced_persistent_volume_claim,
            name,
            settings.namespace,
            final=(403, 404),
        )
    except ApiException as error:
        if error.status == 403:
            return True, f"whether there is a volume claim {name} {where} cannot be seen"
        return (
            False,
            f"there is no volume claim {name} {where}: kubectl get pvc -n {settings.namespace}",
        )
    except ClusterError as error:
        if error.fields.get("option") != "results":
            raise
        return False, str(error).replace("\n ", "")
    return judge(name, api.plain(found))


def judge(name: str, claim: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether pods can write to a claim as the API gives it, and which of them at once."""
    phase = claim.get("status", {}).get("phase", "")
    modes = claim["spec"].get("accessModes", [])
    text = f"{name} is {phase}, {', '.join(modes)}"
    if phase == "Lost":
        return False, f"the volume claim {name} has lost its volume (phase Lost)"
    if "ReadWriteMany" in modes:
        return True, text
    if "ReadWriteOnce" in modes:
        return True, f"{text}: only pods on one node at a time; elements on others wait for them"
    if "ReadWriteOncePod" in modes:
        return True, f"{text}: only one pod at a time; an array's elements wait for each other"
    return False, f"the volume claim {text}: no pod can write to it"
