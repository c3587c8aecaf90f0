"""The Kubernetes that other tests build on: real Jobs on real nodes, and faults on demand."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.credentials import Credential
from clustrix_containers.oci import Image
from clustrix_containers.registry import Remote
from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes.cluster import SECRET, Kubernetes
from tests.samples import image, layer

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module")
def busybox(kubernetes: Kubernetes) -> str:
    """An image in the cluster's registry, by digest."""
    program = shutil.which("busybox")
    assert program
    made: Image = image(layer({"busybox": Path(program).read_bytes()}, mode=0o755))
    registry = kubernetes.registry
    name = f"{registry.address}/test/busybox"
    credentials = Credential(registry.username, registry.password)
    Remote(name, ca_file=registry.ca_file, credentials=lambda *_: credentials).push(made)
    return f"{name}@{made.digest}"


@pytest.fixture
def healed(kubernetes: Kubernetes) -> Iterator[Kubernetes]:
    """The cluster, which a test may damage."""
    yield kubernetes
    kubernetes.control.mend()
    kubernetes.control.resume()
    kubernetes.up()


def start(cluster: Kubernetes, namespace: str, image: str, script: str, **pod: Any) -> str:
    """Make a Job that runs a shell script; its name."""
    name = f"job-{secrets.token_hex(4)}"
    memory = pod.pop("memory", "32Mi")
    container = {
        "name": "main",
        "image": image,
        "command": ["/busybox", "sh", "-c", script],
        "resources": {"limits": {"memory": memory}},
        "terminationMessagePath": "/dev/termination-log",
    }
    spec = {
        "restartPolicy": "Never",
        "imagePullSecrets": [{"name": SECRET}],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        **pod,
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }
    cluster.kubectl("create", "-f", "-", text=json.dumps(job))
    return name


def pod(cluster: Kubernetes, namespace: str, job: str) -> Any:
    listed = cluster.kubectl("get", "pods", "-n", namespace, "-l", f"job-name={job}", "-o", "json")
    items = json.loads(listed)["items"]
    return items[-1] if items else {"status": {"phase": "none"}}


def ended(cluster: Kubernetes, namespace: str, job: str) -> Any:
    """How the Job's only container ended."""
    done = wait_until(
        lambda: pod(cluster, namespace, job)["status"]["phase"] in ("Succeeded", "Failed"), 90
    )
    found = pod(cluster, namespace, job)
    assert done, json.dumps(found["status"], indent=1)
    return found["status"]["containerStatuses"][0]["state"]["terminated"]


def test_a_job_by_digest_runs_and_its_message_comes_back(
    kubernetes: Kubernetes, namespace: str, busybox: str
) -> None:
    job = start(kubernetes, namespace, busybox, "echo out; echo -n done > /dev/termination-log")
    state = ended(kubernetes, namespace, job)
    assert (state["exitCode"], state["message"]) == (0, "done")
    assert kubernetes.kubectl("logs", "-n", namespace, f"job/{job}") == "out\n"
    wait = ("wait", "--for=condition=complete", "--timeout=60s")
    kubernetes.kubectl(*wait, "-n", namespace, f"job/{job}")


def test_without_the_pull_secret_the_image_cannot_be_pulled(
    kubernetes: Kubernetes, namespace: str, busybox: str
) -> None:
    # A node that has the image asks nobody: one of its own.
    fresh = busybox.partition("@")[0]
    job = start(kubernetes, namespace, f"{fresh}:never", "true", imagePullSecrets=[])

    def reason() -> str:
        statuses = pod(kubernetes, namespace, job)["status"].get("containerStatuses", [{}])
        return str(statuses[0].get("state", {}).get("waiting", {}).get("reason", ""))

    assert wait_until(lambda: reason() in ("ErrImagePull", "ImagePullBackOff"), 60)


def test_a_container_over_its_memory_is_killed(
    kubernetes: Kubernetes, namespace: str, busybox: str
) -> None:
    job = start(kubernetes, namespace, busybox, "tail /dev/zero", memory="16Mi")
    state = ended(kubernetes, namespace, job)
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)


def test_a_pod_reaches_this_machine(kubernetes: Kubernetes, namespace: str, busybox: str) -> None:
    host, _, port = kubernetes.registry.address.partition(":")
    job = start(kubernetes, namespace, busybox, f"/busybox nc -w 20 {host} {port} < /dev/null")
    assert ended(kubernetes, namespace, job)["exitCode"] == 0


def test_a_node_that_loses_power_is_noticed_and_comes_back(
    healed: Kubernetes, namespace: str, busybox: str
) -> None:
    job = start(healed, namespace, busybox, "sleep 1000", nodeName="node2")
    assert wait_until(lambda: pod(healed, namespace, job)["status"]["phase"] == "Running", 90)
    healed.node("node2").kill()
    healed.wait_for_nodes("node1")
    assert wait_until(lambda: "deletionTimestamp" in pod(healed, namespace, job)["metadata"], 90)
    healed.start_node("node2")
    healed.wait_for_nodes()


def test_the_api_server_stops_and_comes_back_with_what_it_knew(
    healed: Kubernetes, namespace: str
) -> None:
    healed.api_server.stop("KILL")
    with pytest.raises(StartError, match="refused"):
        healed.kubectl("get", "pods")
    healed.api_server.start()
    healed.api_server.wait()
    assert namespace in healed.kubectl("get", "namespaces")
    healed.wait_for_nodes()


def test_requests_are_counted_by_user(kubernetes: Kubernetes, namespace: str) -> None:
    kubernetes.kubectl("get", "pods", "-n", namespace)
    assert wait_until(lambda: "list pods 200" in kubernetes.requests("admin"), 20)
    assert not [line for line in kubernetes.requests("admin") if "leases" in line]


@pytest.mark.test_all
def test_two_side_by_side_and_nothing_left(tmp_path: Path, kubernetes: Kubernetes) -> None:
    directory = Path("/tmp") / f"cxk-{secrets.token_hex(4)}"
    other = Kubernetes(directory, with_parent=True)
    try:
        other.up()
        assert other.configuration.url != kubernetes.configuration.url
        assert other.ready_nodes() == kubernetes.ready_nodes() == ["node1", "node2"]
    finally:
        other.down()
    assert not directory.exists()
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert len(kubernetes.ready_nodes()) == 2
