"""Indexed Jobs and what came after them, as the documentation of Kubernetes describes it.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.kubernetes_server import Server, Settings, parts
from tests.kubernetes_server.conftest import connected
from tests.kubernetes_server.indexes import INDEX, compressed
from tests.kubernetes_server.peers import Peer

INDEXED: dict[str, Any] = {"completionMode": "Indexed", "completions": 5, "parallelism": 5}
DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}


def by_index(peer: Peer, job: str) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for pod in peer.pods(job):
        found.setdefault(int(pod["metadata"]["annotations"][INDEX]), []).append(pod)
    return found


def test_indexes_as_text() -> None:
    assert compressed({1, 3, 4, 5, 7, 9, 10}) == "1,3-5,7,9,10"
    assert compressed([]) == ""


def test_each_index_has_a_pod_that_knows_it(peer: Peer) -> None:
    job = peer.start("echo $JOB_COMPLETION_INDEX; hostname", **INDEXED)
    status = peer.finished(job)
    assert (status["succeeded"], status["completedIndexes"]) == (5, "0-4")
    assert status["conditions"]["Complete"]["reason"] == "CompletionsReached"
    assert "SuccessCriteriaMet" in status["conditions"]
    pods = by_index(peer, job)
    assert sorted(pods) == list(range(5))
    for index, (pod,) in pods.items():
        assert pod["metadata"]["labels"][INDEX] == str(index)
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job
        assert pod["metadata"]["name"].startswith(f"{job}-{index}-")
        assert peer.log(pod["metadata"]["name"]) == f"{index}\n{job}-{index}\n"


def test_no_more_run_than_may(peer: Peer) -> None:
    job = peer.start("sleep 0.3", **{**INDEXED, "parallelism": 2})
    active = set()

    def done() -> bool:
        status = peer.job(job)["status"]
        active.add(status.get("active", 0))
        return bool(status.get("succeeded") == 5)

    peer.wait(done, "the end")
    assert max(active) == 2


def test_an_index_fails_by_itself(peer: Peer) -> None:
    script = '[ "$JOB_COMPLETION_INDEX" != 2 ]'
    job = peer.start(script, backoffLimitPerIndex=1, **INDEXED)
    status = peer.finished(job)
    failed = status["conditions"]["Failed"]
    assert (failed["reason"], failed["message"]) == ("FailedIndexes", "Job has failed indexes")
    assert (status["completedIndexes"], status["failedIndexes"]) == ("0,1,3,4", "2")
    assert (status["succeeded"], status["failed"]) == (4, 2)
    counts = [
        it["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"]
        for it in by_index(peer, job)[2]
    ]
    assert sorted(counts) == ["0", "1"]


def test_too_many_indexes_fail(peer: Peer) -> None:
    spec = {**INDEXED, "parallelism": 1, "backoffLimitPerIndex": 0, "maxFailedIndexes": 1}
    status = peer.finished(peer.start("exit 1", **spec))
    assert status["conditions"]["Failed"]["reason"] == "MaxFailedIndexesExceeded"
    assert status["failedIndexes"] == "0,1"


@pytest.mark.parametrize(
    ("action", "reason", "failed"), [("FailJob", "PodFailurePolicy", 1), ("FailIndex", "FailedIndexes", 5)]
)  # fmt: skip
def test_an_exit_code_ends_it_at_once(peer: Peer, action: str, reason: str, failed: int) -> None:
    codes = {"containerName": "main", "operator": "In", "values": [42]}
    rules: dict[str, Any] = {
        "podFailurePolicy": {"rules": [{"action": action, "onExitCodes": codes}]}
    }
    spec = {**INDEXED, "parallelism": 1, "backoffLimitPerIndex": 3}
    job = peer.start("exit 42", **rules, **spec)
    status = peer.finished(job)
    assert status["conditions"]["Failed"]["reason"] == reason
    assert status["failed"] == failed
    if action == "FailJob":
        words = f"Container main for pod default/{peer.pods(job)[0]['metadata']['name']}"
        words += " failed with exit code 42 matching FailJob rule at index 0"
        assert status["conditions"]["Failed"]["message"] == words


def test_a_disruption_is_not_counted(server: Server, peer: Peer) -> None:
    rules: dict[str, Any] = {"podFailurePolicy": {"rules": [DISRUPTED]}}
    script = '[ "$(ls /tmp)" ] || sleep 100'
    spec = {**INDEXED, "completions": 1, "parallelism": 1, "backoffLimitPerIndex": 0}
    job = peer.start(script, **rules, **spec)
    name = peer.reach(job, "Running")["metadata"]["name"]
    server.faults.evict("default", name)
    peer.wait(lambda: len(peer.pods(job)) == 2, "a second pod")
    evicted = next(it for it in peer.pods(job) if it["metadata"]["name"] == name)
    assert (evicted["status"]["phase"], evicted["status"]["reason"]) == ("Failed", "Evicted")
    assert peer.job(job)["status"].get("failed", 0) == 0


def test_suspended_and_resumed(peer: Peer) -> None:
    job = peer.start("true", suspend=True, **INDEXED)
    peer.wait(lambda: "conditions" in peer.job(job)["status"], "a condition")
    status = peer.job(job)["status"]
    assert [(it["type"], it["status"], it["reason"]) for it in status["conditions"]] == [
        ("Suspended", "True", "JobSuspended")
    ]
    assert peer.pods(job) == [] and "startTime" not in status
    peer.batch.patch_namespaced_job(job, "default", {"spec": {"suspend": False}})
    assert peer.finished(job)["succeeded"] == 5
    assert {"Suspended", "Resumed", "Completed"} <= {it for it, _ in peer.events(job)}


def test_suspended_while_it_runs(peer: Peer) -> None:
    job = peer.start("sleep 100", pod={"terminationGracePeriodSeconds": 0}, **INDEXED)
    peer.wait(lambda: peer.job(job)["status"].get("ready") == 5, "five pods")
    peer.batch.patch_namespaced_job(job, "default", {"spec": {"suspend": True}})
    peer.wait(lambda: not peer.pods(job), "the end of the pods")
    status = peer.job(job)["status"]
    assert "failed" not in status and "active" not in status


@pytest.mark.parametrize(
    ("minor", "dropped"),
    [
        (36, set()),
        (27, {"backoffLimitPerIndex"}),
        (24, {"backoffLimitPerIndex", "podFailurePolicy"}),
        (21, {"backoffLimitPerIndex", "podFailurePolicy", "completionMode", "suspend"}),
    ],
)
def test_an_older_server_drops_what_it_does_not_know(
    tmp_path: Path, busybox_root: Path, minor: int, dropped: set[str]
) -> None:
    settings = Settings(minor=minor)
    with Server(tmp_path / "server", parts.pull_busybox(busybox_root), settings) as server:
        for peer in connected(server, "default"):
            spec = {**INDEXED, "completions": 1, "parallelism": 1, "suspend": False}
            rules: dict[str, Any] = {
                "backoffLimitPerIndex": 1,
                "podFailurePolicy": {"rules": [DISRUPTED]},
            }
            job = peer.start("true", **rules, **spec)
            asked = {*rules, "completionMode", "suspend"}
            assert asked - peer.job(job)["spec"].keys() == dropped
            assert peer.finished(job)["succeeded"] == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"completionMode": "Indexed"}, "spec.completions: Required value"),
        ({"backoffLimitPerIndex": 1}, "requires indexed completion mode"),
        ({**INDEXED, "maxFailedIndexes": 1}, "spec.backoffLimitPerIndex: Required value"),
        ({"colour": "red"}, 'strict decoding error: unknown field "spec.colour"'),
    ],
)
def test_what_makes_no_sense_is_refused(peer: Peer, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiException) as caught:
        peer.start("true", **spec)
    assert message in str(caught.value.body).replace('\\"', '"')
