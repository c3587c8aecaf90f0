"""How runs fail: with one sentence each, and a new attempt where the infrastructure failed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import clustrix_containers as cx
from clustrix_containers.api.status import State
from clustrix_containers.errors import MemoryLimitExceeded, TimeLimitExceeded, WorkerDied
from tests.cases import work
from tests.clusters.kubernetes.access import Access
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.objects import batch, core, jobs, pods, scheduling, until

pytestmark = pytest.mark.kubernetes

Configure = Callable[..., None]


def fresh() -> float:
    """An argument that no other call has: an image that no node has yet."""
    return random.random()


def wait_for_message(job: cx.Job, words: str, seconds: float = 60) -> None:
    until(lambda: words in job.status.message, seconds, lambda: (job.status, words))


def test_an_image_that_cannot_be_pulled_fails_with_the_registrys_message(
    configure: Configure, kubernetes: Access, namespace: str
) -> None:
    wrong = {".dockerconfigjson": '{"auths": {}}'}
    secret = {
        "metadata": {"name": "wrong"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": wrong,
    }
    with core(kubernetes) as api:
        api.create_namespaced_secret(namespace, secret)
    configure(pull_secret="wrong", pull_grace=3)
    job = cx.function(work.square).submit(fresh(), on="k8s")
    with pytest.raises(WorkerDied, match=r"image cannot be pulled .*(401|authorization failed)"):
        job.result(90)
    # Otherwise it would start when the image can be pulled later, with no client waiting.
    until(lambda: not jobs(kubernetes, namespace), 30, lambda: jobs(kubernetes, namespace))


def test_a_pull_that_succeeds_within_the_grace_period(
    configure: Configure, kubernetes: Access, own_kubernetes: Kubernetes
) -> None:
    own_kubernetes.refuse_pulls()
    job = cx.function(work.square).submit(number := fresh(), on="k8s")
    wait_for_message(job, "connection refused")
    own_kubernetes.allow_pulls()
    assert job.result(120) == number**2


def test_unschedulable_with_the_schedulers_message_and_schedulable_later(
    configure: Configure, own_kubernetes: Kubernetes
) -> None:
    configure(node_selector={"disk": "fast"}, pull_grace=1)
    job = cx.function(work.square).submit(fresh(), on="k8s")
    wait_for_message(job, "0/2 nodes are available")
    assert job.status.state is State.PENDING
    own_kubernetes.kubectl("label", "node", "node1", "disk=fast")
    try:
        assert job.result(60) > 0
    finally:
        own_kubernetes.kubectl("label", "node", "node1", "disk-")


def test_over_quota_with_the_servers_message_and_it_runs_when_the_quota_is_gone(
    on: str, kubernetes: Access, namespace: str
) -> None:
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "0"}}}
    with core(kubernetes) as api:
        api.create_namespaced_resource_quota(namespace, quota)
        job = cx.function(work.square).submit(fresh(), on=on)
        wait_for_message(job, "exceeded quota: small")
        assert job.status.state is State.PENDING
        api.delete_namespaced_resource_quota("small", namespace)
    # The Job's controller tries again by itself, in longer and longer intervals.
    assert job.result(120) > 0


def test_a_job_that_the_api_server_refuses_is_an_error_of_submit(
    on: str, kubernetes: Access, namespace: str
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    with core(kubernetes) as api:
        api.create_namespaced_resource_quota(namespace, quota)
        until(
            lambda: (
                api.read_namespaced_resource_quota_status("none", namespace).status.hard is not None
            ),
            60,
            lambda: "the quota is not in force",
        )
    with pytest.raises(cx.errors.ClusterError, match="exceeded quota: none"):
        cx.function(work.square).submit(fresh(), on=on)


def test_out_of_memory(on: str) -> None:
    job = cx.function(work.eats_memory, memory="100MiB").submit(1000, on=on)
    with pytest.raises(MemoryLimitExceeded, match="100"):
        job.result(90)


def test_the_deadline_of_the_whole_job(configure: Configure) -> None:
    configure(deadline=3)
    with pytest.raises(TimeLimitExceeded, match=r"DeadlineExceeded|deadline"):
        cx.function(work.wait_for).submit(1000, on="k8s").result(90)


def test_a_pod_that_a_failed_job_has_left_running_is_ended(
    on: str, kubernetes: Access, namespace: str
) -> None:
    job = cx.function(work.wait_for).submit(1000, on=on)
    running(job)
    # The Job controller of 1.20 does not end a pod that it has created and not seen yet when the
    # deadline passes, and looks at the Job no more.
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "late"}
    (name,) = (it.metadata.name for it in jobs(kubernetes, namespace))
    with batch(kubernetes) as api:
        api.patch_namespaced_job_status(name, namespace, {"status": {"conditions": [failed]}})
    with pytest.raises(TimeLimitExceeded, match="DeadlineExceeded: late"):
        job.result(90)
    # Its node may take longer to clean up.
    assert all(pod.metadata.deletion_timestamp for pod in pods(kubernetes, namespace))


def test_a_worker_that_is_killed(on: str, own_kubernetes: Kubernetes, namespace: str) -> None:
    job = cx.function(work.wait_for).submit(1000, on=on)
    running(job)
    (pod,) = pods(own_kubernetes.access, namespace)
    container = pod.status.container_statuses[0].container_id.removeprefix("containerd://")
    node = own_kubernetes.node(pod.spec.node_name)
    node.run("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)
    with pytest.raises(WorkerDied, match="its container ended with signal 9"):
        job.result(90)


def running(job: cx.Job) -> None:
    until(job.running, 90, lambda: job.status)


def test_a_job_that_somebody_else_deletes(on: str, kubernetes: Access, namespace: str) -> None:
    job = cx.function(work.wait_for).submit(1000, on=on)
    running(job)
    (name,) = (it.metadata.name for it in jobs(kubernetes, namespace))
    with batch(kubernetes) as api:
        api.delete_namespaced_job(name, namespace, propagation_policy="Background")
    with pytest.raises(WorkerDied, match="its Job was deleted"):
        job.result(90)


def test_a_pod_that_is_deleted_while_it_runs_runs_again(
    on: str, kubernetes: Access, namespace: str
) -> None:
    job = cx.function(work.wait_for).submit(4, on=on)
    running(job)
    (pod,) = pods(kubernetes, namespace)
    with core(kubernetes) as api:
        api.delete_namespaced_pod(pod.metadata.name, namespace)
    assert job.result(120) == 4


def test_a_log_continues_with_the_pod_that_replaces_a_deleted_one(
    on: str, kubernetes: Access, namespace: str
) -> None:
    job = cx.function(work.counts_aloud).submit(60, 0.1, on=on)
    lines = job.logs(follow=True)
    seen = [next(lines) for _ in range(5)]
    (pod,) = pods(kubernetes, namespace)
    with core(kubernetes) as api:
        api.delete_namespaced_pod(pod.metadata.name, namespace)
    seen += lines
    counted_twice(seen, 60)


def counted_twice(seen: list[str], count: int) -> None:
    """The beginning of ``counts_aloud``, and then all of it, no line lost or twice."""
    whole = [*(f"line {i} – ünïcode\n" for i in range(count)), "to stderr\n"]
    first, second = seen[: -len(whole)], seen[-len(whole) :]
    assert second == whole
    assert first == whole[: len(first)]
    assert 5 <= len(first) < count


@pytest.mark.test_all
def test_a_log_continues_with_the_attempt_after_an_evicted_one(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    job = cx.function(work.counts_aloud).submit(400, 0.1, on=on)
    lines = job.logs(follow=True)
    seen = [next(lines) for _ in range(5)]
    (pod,) = pods(own_kubernetes.access, namespace)
    own_kubernetes.fill_disk(pod.spec.node_name)
    seen += lines
    counted_twice(seen, 400)
    assert job.result(60) == 400
    assert len(jobs(own_kubernetes.access, namespace)) == 2


@pytest.mark.test_all
def test_evicted_runs_again(
    on: str, own_kubernetes: Kubernetes, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = cx.function(work.wait_for).submit(8, on=on)
    running(job)
    (pod,) = pods(own_kubernetes.access, namespace)
    own_kubernetes.fill_disk(pod.spec.node_name)
    until(lambda: len(pods(own_kubernetes.access, namespace)) > 1, 90, lambda: job.status)
    assert job.result(120) == 8
    assert "runs again: was evicted from the node" in caplog.text


@pytest.mark.test_all
def test_a_node_that_is_lost_and_its_elements_run_again(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    job = cx.function(work.wait_for).submit(10, on=on)
    running(job)
    (pod,) = pods(own_kubernetes.access, namespace)
    own_kubernetes.node(pod.spec.node_name).kill()
    wait_for_message(job, f"(again: its node {pod.spec.node_name} was lost", 150)
    assert job.result(60) == 10


def test_preempted_runs_again(
    configure: Configure, own_kubernetes: Kubernetes, namespace: str
) -> None:
    with scheduling(own_kubernetes.access) as api:
        api.create_priority_class({"metadata": {"name": f"high-{namespace}"}, "value": 1000})
        # Each of them fills a node.
        low = [cx.function(work.wait_for, cpus=1.2).submit(6 + n, on="k8s") for n in range(2)]
        for job in low:
            running(job)
        configure(priority_class=f"high-{namespace}")
        high = cx.function(work.wait_for, cpus=1.2).submit(3, on="k8s")
        until(
            lambda: any("was preempted: " in job.status.message for job in low),
            60,
            lambda: [job.status for job in low],
        )
        assert high.result(120) == 3
        assert [job.result(120) for job in low] == [6, 7]
        api.delete_priority_class(f"high-{namespace}")
