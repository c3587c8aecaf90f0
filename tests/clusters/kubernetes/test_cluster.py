"""The Kubernetes that other tests build on: real Jobs on real nodes, and faults on demand."""

from __future__ import annotations

import datetime
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import BatchV1Api, CoreV1Api

from clustrix_containers.oci.model import Image
from tests.clusters.daemon import StartError, wait_until
from tests.clusters.kubernetes.access import GIVEN, REGISTRY, SECRET, Access, given
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.samples import image, layer

pytestmark = pytest.mark.kubernetes


def busybox_image() -> Image:
    """An image with a digest that no node has seen."""
    program = shutil.which("busybox")
    assert program
    files = {"busybox": Path(program).read_bytes(), "unique": secrets.token_bytes(8)}
    made: Image = image(layer(files, mode=0o755))
    return made


@pytest.fixture(scope="module")
def busybox(kubernetes: Access) -> str:
    return kubernetes.push("test/busybox", busybox_image())


@pytest.fixture
def jobs(kubernetes: Access, namespace: str) -> Iterator[Jobs]:
    with kubernetes.client() as client:
        yield Jobs(client, namespace)


class Jobs:
    """The Jobs of one namespace."""

    def __init__(self, client: Any, namespace: str) -> None:
        # Its types say of everything that it may be missing.
        self.batch: Any = BatchV1Api(client)
        self.core: Any = CoreV1Api(client)
        self.namespace = namespace

    def start(
        self, image: str, script: str, *, memory: str = "32Mi", ttl: int | None = None, **pod: Any
    ) -> str:
        """Make a Job that runs a shell script; its name. ``pod`` adds to the pod's spec."""
        name = f"job-{secrets.token_hex(4)}"
        container = {
            "name": "main",
            "image": image,
            "command": ["/busybox", "sh", "-c", script],
            "resources": {"limits": {"memory": memory}},
        }
        spec = {
            "restartPolicy": "Never",
            "imagePullSecrets": [{"name": SECRET}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **pod,
        }
        job = {"backoffLimit": 0, "template": {"spec": spec}, "ttlSecondsAfterFinished": ttl}
        self.batch.create_namespaced_job(self.namespace, {"metadata": {"name": name}, "spec": job})
        return name

    def pod(self, job: str) -> Any:
        """Its newest pod; None while there is none."""
        pods = self.core.list_namespaced_pod(self.namespace, label_selector=f"job-name={job}").items
        return max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)

    def phase(self, job: str) -> str:
        pod = self.pod(job)
        return pod.status.phase if pod else ""

    def waiting(self, job: str) -> str:
        """Why its container does not run yet."""
        pod = self.pod(job)
        statuses = pod.status.container_statuses if pod else None
        return statuses[0].state.waiting.reason if statuses and statuses[0].state.waiting else ""

    def wait_gone(self, job: str) -> None:
        def names() -> list[str]:
            listed = self.batch.list_namespaced_job(self.namespace).items
            return [item.metadata.name for item in listed]

        assert wait_until(lambda: job not in names(), 90), self.describe(job)

    def describe(self, job: str) -> str:
        """The status and the events of its pod, for a test that fails."""
        pod = self.pod(job)
        events = self.core.list_namespaced_event(self.namespace).items
        return f"{pod and pod.status}\n" + "\n".join(str(event.message) for event in events)

    def wait_running(self, job: str) -> None:
        known = ("Running", "Succeeded", "Failed")
        assert wait_until(lambda: self.phase(job) in known, 90), self.describe(job)
        assert self.phase(job) == "Running", self.describe(job)

    def ended(self, job: str) -> Any:
        """How its only container ended."""
        over = ("Succeeded", "Failed")
        assert wait_until(lambda: self.phase(job) in over, 90), self.describe(job)
        return self.pod(job).status.container_statuses[0].state.terminated

    def log(self, job: str) -> bytes:
        name = self.pod(job).metadata.name
        # As it comes: versions of the client differ in what they make of it.
        answer = self.core.read_namespaced_pod_log(name, self.namespace, _preload_content=False)
        return bytes(answer.data)

    def complete(self, job: str) -> bool:
        status = self.batch.read_namespaced_job_status(job, self.namespace).status
        return any(it.type == "Complete" and it.status == "True" for it in status.conditions or ())


def test_a_job_by_digest_runs_and_its_message_comes_back(jobs: Jobs, busybox: str) -> None:
    job = jobs.start(busybox, "echo out; echo -n done > /dev/termination-log")
    state = jobs.ended(job)
    assert (state.exit_code, state.message) == (0, "done")
    assert jobs.log(job) == b"out\n"
    assert wait_until(lambda: jobs.complete(job), 60)


def test_a_pod_can_be_made_as_soon_as_its_namespace_is_there(
    kubernetes: Access, busybox: str
) -> None:
    with kubernetes.client() as client:
        core: Any = CoreV1Api(client)
        for _ in range(5):
            name = f"test-{secrets.token_hex(4)}"
            kubernetes.make_namespace(name)
            container = {"name": "main", "image": busybox, "command": ["/busybox", "true"]}
            pod = {
                "metadata": {"name": "first"},
                "spec": {"containers": [container], "restartPolicy": "Never"},
            }
            core.create_namespaced_pod(name, pod)
            kubernetes.delete_namespace(name)


def test_without_the_pull_secret_the_image_cannot_be_pulled(kubernetes: Access, jobs: Jobs) -> None:
    # Of a node that has the image nobody asks for a password.
    fresh = kubernetes.push("test/secret", busybox_image())
    job = jobs.start(fresh, "true", imagePullSecrets=[])
    assert wait_until(lambda: jobs.waiting(job) in ("ErrImagePull", "ImagePullBackOff"), 60)


def test_a_container_over_its_memory_is_killed(jobs: Jobs, busybox: str) -> None:
    state = jobs.ended(jobs.start(busybox, "tail /dev/zero", memory="16Mi"))
    assert (state.reason, state.exit_code) == ("OOMKilled", 137)


def test_each_node_runs_pods_which_reach_this_machine_and_each_other(
    kubernetes: Access, own_kubernetes: Kubernetes, jobs: Jobs, busybox: str
) -> None:
    host, _, port = kubernetes.registry.partition(":")
    listen = "while :; do /busybox nc -l -p 80 < /dev/null; done"
    server = jobs.start(busybox, listen, nodeName="node1")
    jobs.wait_running(server)
    peer = jobs.pod(server).status.pod_ip
    probe = (
        f"/busybox nc -w 20 {host} {port} < /dev/null &&"
        f" until /busybox nc -w 20 {peer} 80 < /dev/null; do /busybox usleep 100000; done"
    )
    for node in ("node1", "node2"):
        assert jobs.ended(jobs.start(busybox, probe, nodeName=node)).exit_code == 0


def test_a_node_that_loses_power_is_noticed_and_comes_back(
    own_kubernetes: Kubernetes, jobs: Jobs, busybox: str
) -> None:
    job = jobs.start(busybox, "sleep 1000", nodeName="node2")
    jobs.wait_running(job)
    first = jobs.pod(job).metadata.name
    own_kubernetes.node("node2").kill()
    own_kubernetes.wait_for_nodes("node1")

    def given_up() -> bool:
        found = jobs.core.read_namespaced_pod(first, jobs.namespace)
        return found.metadata.deletion_timestamp is not None

    assert wait_until(given_up, 90)
    own_kubernetes.start_node("node2")
    own_kubernetes.wait_for_nodes()
    again = jobs.start(busybox, "true", nodeName="node2")
    assert jobs.ended(again).exit_code == 0


def test_what_is_paused_and_cut_off_is_put_right(own_kubernetes: Kubernetes) -> None:
    own_kubernetes.node("node1").pause()
    own_kubernetes.node("node2").cut()
    own_kubernetes.controller_manager.stop("KILL")
    own_kubernetes.up()
    own_kubernetes.wait_for_nodes()
    assert own_kubernetes.controller_manager.running()


def test_a_cut_off_node_is_noticed(own_kubernetes: Kubernetes) -> None:
    own_kubernetes.node("node1").cut()
    own_kubernetes.wait_for_nodes("node2")
    own_kubernetes.node("node1").reconnect()
    own_kubernetes.wait_for_nodes()


def test_the_api_server_stops_and_comes_back_with_what_it_knew(
    kubernetes: Access, own_kubernetes: Kubernetes, namespace: str
) -> None:
    own_kubernetes.api_server.stop("KILL")
    assert not kubernetes.answers()
    with pytest.raises(StartError, match="refused"):
        own_kubernetes.kubectl("get", "pods")
    own_kubernetes.api_server.start()
    own_kubernetes.api_server.wait()
    assert namespace in own_kubernetes.kubectl("get", "namespaces")
    own_kubernetes.wait_for_nodes()


def test_the_machine_of_the_api_server_loses_power_and_comes_back_with_what_it_knew(
    own_kubernetes: Kubernetes, namespace: str, jobs: Jobs, busybox: str
) -> None:
    job = jobs.start(busybox, "sleep 1000")
    jobs.wait_running(job)
    own_kubernetes.control.kill()
    assert not own_kubernetes.ready_nodes()
    own_kubernetes.up()
    assert jobs.phase(job) == "Running"
    assert jobs.ended(jobs.start(busybox, "true")).exit_code == 0


def test_without_a_scheduler_pods_wait(
    own_kubernetes: Kubernetes, jobs: Jobs, busybox: str
) -> None:
    own_kubernetes.scheduler.stop()
    job = jobs.start(busybox, "true")
    assert wait_until(lambda: jobs.phase(job) == "Pending", 60)
    assert not jobs.pod(job).spec.node_name
    own_kubernetes.scheduler.start()
    assert jobs.ended(job).exit_code == 0


def test_pulls_are_refused_and_heal(
    kubernetes: Access, own_kubernetes: Kubernetes, jobs: Jobs
) -> None:
    own_kubernetes.refuse_pulls()
    fresh = kubernetes.push("test/refused", busybox_image())
    job = jobs.start(fresh, "true")
    assert wait_until(lambda: jobs.waiting(job) in ("ErrImagePull", "ImagePullBackOff"), 60)
    assert wait_until(lambda: "connection refused" in jobs.describe(job), 30), jobs.describe(job)
    own_kubernetes.allow_pulls()
    assert jobs.ended(job).exit_code == 0


def test_a_node_with_a_full_disk_evicts_its_pods(
    own_kubernetes: Kubernetes, jobs: Jobs, busybox: str
) -> None:
    job = jobs.start(busybox, "sleep 1000", nodeName="node2")
    jobs.wait_running(job)
    first = jobs.pod(job).metadata.name
    own_kubernetes.fill_disk("node2")

    def status() -> Any:
        return jobs.core.read_namespaced_pod(first, jobs.namespace).status

    assert wait_until(lambda: status().phase == "Failed", 90), status()
    assert status().reason == "Evicted"
    own_kubernetes.free_disk("node2")

    def pressed() -> bool:
        conditions = jobs.core.read_node_status("node2").status.conditions
        return any(it.type == "DiskPressure" and it.status == "True" for it in conditions)

    assert wait_until(lambda: not pressed(), 90)
    assert jobs.ended(jobs.start(busybox, "true", nodeName="node2")).exit_code == 0


def test_a_pod_that_writes_too_much_is_evicted(jobs: Jobs, busybox: str) -> None:
    container = {
        "name": "main",
        "image": busybox,
        "command": ["/busybox", "sh", "-c", "/busybox head -c 9m /dev/zero > /data/f; sleep 1000"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    volume = {"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}
    job = jobs.start(busybox, "", containers=[container], volumes=[volume])
    # The Job's controller makes no other one, and keeps this.
    assert wait_until(lambda: jobs.phase(job) == "Failed", 120), jobs.describe(job)
    assert jobs.pod(job).status.reason == "Evicted"


def test_both_nodes_share_a_volume(
    own_kubernetes: Kubernetes, namespace: str, jobs: Jobs, busybox: str
) -> None:
    own_kubernetes.make_claim(namespace, "results")
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "results"}}

    def run(script: str, node: str, user: int) -> str:
        container = {
            "name": "main",
            "image": busybox,
            "command": ["/busybox", "sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "securityContext": {"runAsUser": user},
        }
        return jobs.start(busybox, "", containers=[container], volumes=[claim], nodeName=node)

    assert jobs.ended(run("echo shared > /data/file", "node1", 1000)).exit_code == 0
    reader = run("/busybox cat /data/file", "node2", 2000)
    assert jobs.ended(reader).exit_code == 0
    assert jobs.log(reader) == b"shared\n"


def test_a_quota_is_kept_and_a_finished_job_deleted(jobs: Jobs, busybox: str) -> None:
    done = jobs.start(busybox, "true", ttl=1)
    jobs.wait_gone(done)
    jobs.core.create_namespaced_resource_quota(
        jobs.namespace, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    )

    def counted() -> bool:
        quota = jobs.core.read_namespaced_resource_quota("none", jobs.namespace)
        return bool(quota.status.used)

    assert wait_until(counted, 60)
    refused = jobs.start(busybox, "true")
    assert wait_until(lambda: "exceeded quota" in jobs.describe(refused), 60), jobs.describe(
        refused
    )


def test_requests_are_counted_by_user_agent_and_time(
    kubernetes: Access, own_kubernetes: Kubernetes, namespace: str
) -> None:
    agent = f"test-{secrets.token_hex(4)}/1"
    with kubernetes.client() as client:
        client.user_agent = agent
        CoreV1Api(client).list_namespaced_pod(namespace)
        assert wait_until(lambda: bool(own_kubernetes.requests(agent=agent)), 20)
        now = datetime.datetime.now(datetime.timezone.utc)
        CoreV1Api(client).list_namespaced_secret(namespace)
        assert wait_until(lambda: len(own_kubernetes.requests(agent=agent)) == 2, 20)
    found = own_kubernetes.requests(agent=agent)
    assert list(map(str, found)) == ["list pods 200", "list secrets 200"]
    assert list(map(str, own_kubernetes.requests(user="admin", agent=agent, since=now))) == [
        "list secrets 200"
    ]
    assert not own_kubernetes.requests(user="nobody", agent=agent)


def test_a_given_cluster_is_used_and_named_by_its_environment(kubernetes: Access) -> None:
    access = given(kubernetes.env())
    assert access == kubernetes
    assert access.answers()
    with pytest.raises(StartError, match=REGISTRY):
        given({GIVEN: "/some/file"})
    assert given({"KUBECONFIG": "/production"}) is None
