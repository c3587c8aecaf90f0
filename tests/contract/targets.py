"""The targets of the contract suite: a new one is one entry of :data:`TARGETS`.

A name, the cluster that it needs (:data:`tests.clusters.plugin.FIXTURES` names its fixture),
its lines for ``clustrix.yml``, and what the fixture's value means for the environment. What a
target cannot do is said here too, by a field that the test asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.kubernetes.access import SECRET, Access


def nothing(_address: Any) -> Mapping[str, str]:
    return {}


def no_remains(_address: Any) -> Sequence[str]:
    return ()


def containers(host: str) -> Sequence[str]:
    """What an engine still has of ours, running or not."""
    import docker

    client = docker.DockerClient(base_url=host)
    try:
        ours = {"label": "io.clustrix-containers.run"}
        listed = client.containers.list(all=True, filters=ours, ignore_removed=True)
        return [container.name for container in listed]
    finally:
        client.close()


@dataclass(frozen=True)
class Target:
    """One target: ``options`` is YAML, or gives it; all take the value of the cluster's fixture.

    ``variables`` are those of the environment, ``remains`` what the cluster still has of a
    test's runs: it must come to nothing after each test.
    """

    name: str
    options: str | Callable[[Any], str]
    cluster: str | None = None
    variables: Callable[[Any], Mapping[str, str]] = nothing
    remains: Callable[[Any], Sequence[str]] = no_remains
    sizes_shm: bool = True
    """Whether ``/dev/shm`` gets the size that was asked for."""
    plugin: Path | None = None
    """A directory on ``sys.path`` that brings the target's type, as an installed package would."""


NAMESPACE = "contract"


def kubernetes_options(cluster: Access) -> str:
    """The target's lines, in a namespace that is made when it is first asked for."""
    if NAMESPACE not in cluster.namespaces():
        cluster.make_namespace(NAMESPACE)
    options = {
        "type": "kubernetes",
        "kubeconfig": str(cluster.kubeconfig),
        "namespace": NAMESPACE,
        "registry": f"{cluster.registry}/contract/runs",
        "pull_secret": SECRET,
        "ttl": "2m",
    }
    return json.dumps(options)


TARGETS = {
    target.name: target
    for target in (
        Target("sandbox", "{type: local, runtime: sandbox}"),
        # Sixty lines, to show that the seam is small.
        Target("minimal", "{type: minimal}", plugin=Path(__file__).with_name("minimal")),
        Target(
            "docker",
            # The tests' own engine has no bridge network.
            "{type: local, runtime: docker, network: host}",
            cluster="docker",
            variables=lambda host: {"DOCKER_HOST": host},
            remains=containers,
        ),
        Target(
            "apptainer",
            "{type: local, runtime: apptainer}",
            cluster="apptainer",
            variables=lambda path: {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"},
            sizes_shm=False,
        ),
        Target(
            "k8s",
            kubernetes_options,
            cluster="kubernetes",
            variables=Access.variables,
            remains=lambda cluster: cluster.pods(NAMESPACE),
            # Since 1.22, where a node has the kernel for it.
            sizes_shm=False,
        ),
    )
}


def as_parameter(target: Target) -> Any:
    """The target as a parameter: with the marker of its cluster, so that it can be excluded."""
    marks = [getattr(pytest.mark, target.cluster)] if target.cluster else []
    return pytest.param(target, id=target.name, marks=marks)


def on_targets(*names: str) -> pytest.MarkDecorator:
    """Run a test on these targets only: for what is decided before a target is asked."""
    chosen = [as_parameter(TARGETS[name]) for name in names]
    return pytest.mark.parametrize("target", chosen, indirect=True)


def everywhere_but_most_on(
    name: str, argument: str, cases: Sequence[str], handful: Sequence[str]
) -> pytest.MarkDecorator:
    """All cases on the target ``name``, and a handful of them on each of the others."""
    chosen = [
        pytest.param(*whole.values, case, id=f"{target.name}-{case}", marks=whole.marks)
        for target in TARGETS.values()
        for whole in (as_parameter(target),)
        for case in (cases if target.name == name else handful)
    ]
    return pytest.mark.parametrize(("target", argument), chosen, indirect=["target"])
