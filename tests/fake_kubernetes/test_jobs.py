"""Indexed Jobs and what came after them, as the documentation of Kubernetes describes it.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.fake_kubernetes import FakeCluster
from tests.fake_kubernetes.client import Client, terminated
from tests.fake_kubernetes.jobs import compressed
from tests.fake_kubernetes.objects import INDEX

INDEXED: dict[str, Any] = {"completionMode": "Indexed", "completions": 5, "parallelism": 5}
ONE: dict[str, Any] = {**INDEXED, "completions": 1, "parallelism": 1}


def by_index(client: Client, job: str) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for pod in client.pods(job):
        found.setdefault(int(pod["metadata"]["annotations"][INDEX]), []).append(pod)
    return found


def test_indexes_as_text() -> None:
    assert compressed({1, 3, 4, 5, 7, 9, 10}) == "1,3-5,7,9,10"
    assert compressed([]) == ""


def test_each_index_has_a_pod_that_knows_it(fake: Client) -> None:
    job = fake.start("echo $JOB_COMPLETION_INDEX $(hostname) > /dev/termination-log", **INDEXED)
    status = fake.finished(job)
    assert (status["succeeded"], status["completedIndexes"]) == (5, "0-4")
    assert status["conditions"]["Complete"]["reason"] == "CompletionsReached"
    assert "SuccessCriteriaMet" in status["conditions"]
    pods = by_index(fake, job)
    assert sorted(pods) == list(range(5))
    for index, (pod,) in pods.items():
        assert pod["metadata"]["labels"][INDEX] == str(index)
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job
        assert pod["metadata"]["name"].startswith(f"{job}-{index}-")
        assert terminated(pod)["message"] == f"{index} {job}-{index}\n"


def test_no_more_run_than_may(fake: Client) -> None:
    job = fake.start("sleep 0.3", **{**INDEXED, "parallelism": 2})
    active = set()

    def done() -> bool:
        status = fake.job(job)["status"]
        active.add(status.get("active", 0))
        return bool(status.get("succeeded") == 5)

    fake.wait(done, "end")
    assert max(active) == 2


def test_an_index_fails_by_itself(fake: Client) -> None:
    job = fake.start('[ "$JOB_COMPLETION_INDEX" != 2 ]', backoffLimitPerIndex=1, **INDEXED)
    status = fake.finished(job)
    failed = status["conditions"]["Failed"]
    assert (failed["reason"], failed["message"]) == ("FailedIndexes", "Job has failed indexes")
    assert (status["completedIndexes"], status["failedIndexes"]) == ("0,1,3,4", "2")
    assert (status["succeeded"], status["failed"]) == (4, 2)
    count = "batch.kubernetes.io/job-index-failure-count"
    counts = [it["metadata"]["annotations"][count] for it in by_index(fake, job)[2]]
    assert sorted(counts) == ["0", "1"]


def test_too_many_indexes_fail(fake: Client) -> None:
    spec = {**INDEXED, "parallelism": 1, "backoffLimitPerIndex": 0, "maxFailedIndexes": 1}
    status = fake.finished(fake.start("exit 1", **spec))
    assert status["conditions"]["Failed"]["reason"] == "MaxFailedIndexesExceeded"
    assert status["failedIndexes"] == "0,1"


def test_a_disruption_that_the_policy_ignores_is_not_counted(
    cluster: FakeCluster, fake: Client
) -> None:
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    policy: dict[str, Any] = {"podFailurePolicy": {"rules": [rule]}}
    job = fake.start("sleep 1000", backoffLimitPerIndex=0, **policy, **ONE)
    name = fake.running_pod(job)
    cluster.faults.evict("default", name)
    fake.wait(lambda: len(fake.pods(job)) == 2, "second pod")
    (evicted,) = (it for it in fake.pods(job) if it["metadata"]["name"] == name)
    assert (evicted["status"]["phase"], evicted["status"]["reason"]) == ("Failed", "Evicted")
    assert fake.job(job)["status"]["failed"] == 0


def test_one_that_it_does_not_ignore_is(cluster: FakeCluster, fake: Client) -> None:
    job = fake.start("sleep 1000", backoffLimitPerIndex=0, **ONE)
    cluster.faults.evict("default", fake.running_pod(job))
    assert fake.finished(job)["failed"] == 1


def test_suspended_and_resumed(fake: Client) -> None:
    job = fake.start("true", suspend=True, **INDEXED)
    fake.wait(lambda: "conditions" in fake.job(job)["status"], "condition")
    status = fake.job(job)["status"]
    (condition,) = status["conditions"]
    assert (condition["type"], condition["reason"]) == ("Suspended", "JobSuspended")
    assert fake.pods(job) == [] and "startTime" not in status
    fake.batch.patch_namespaced_job(job, "default", {"spec": {"suspend": False}})
    assert fake.finished(job)["succeeded"] == 5


def test_suspended_while_it_runs(fake: Client) -> None:
    job = fake.start("sleep 100", pod={"terminationGracePeriodSeconds": 0}, **INDEXED)
    fake.wait(lambda: fake.job(job)["status"].get("ready") == 5, "five pods")
    fake.batch.patch_namespaced_job(job, "default", {"spec": {"suspend": True}})
    fake.wait(lambda: not fake.pods(job), "end of the pods")
    status = fake.job(job)["status"]
    assert (status["failed"], status["active"]) == (0, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"completionMode": "Indexed"}, "spec.completions: Required value"),
        ({"backoffLimitPerIndex": 1}, "requires indexed completion mode"),
        ({**INDEXED, "maxFailedIndexes": 1}, "spec.backoffLimitPerIndex: Required value"),
        ({**INDEXED, "name": "x" * 62}, "metadata.name: Invalid value"),
        ({"colour": "red"}, 'strict decoding error: unknown field "spec.colour"'),
    ],
)
def test_what_makes_no_sense_is_refused(fake: Client, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiException) as caught:
        fake.start("true", **spec)
    assert message in str(caught.value.body).replace('\\"', '"')
