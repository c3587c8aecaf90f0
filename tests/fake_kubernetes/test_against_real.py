"""What our client relies on is the same on the fake cluster and on the real one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websocket
from kubernetes import watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.fake_kubernetes.client import Client, terminated

SECRET = {"metadata": {"name": "key"}, "data": {"key": "dmFsdWU="}}


def failure(request: Any, *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Code, reason and message with which a request is refused."""
    with pytest.raises(ApiException) as caught:
        request(*arguments, **options)
    status = json.loads(str(caught.value.body))
    return caught.value.status, status["reason"], status["message"]


# -- objects


def test_a_name_is_taken_once(either: Client) -> None:
    core, space = either.core, either.namespace
    made = either.plain(core.create_namespaced_secret(space, SECRET))
    assert (made["type"], made["data"]) == ("Opaque", SECRET["data"])
    assert made["metadata"]["uid"] and made["metadata"]["resourceVersion"]
    taken = (409, "AlreadyExists", 'secrets "key" already exists')
    assert failure(core.create_namespaced_secret, space, SECRET) == taken
    assert failure(core.create_namespaced_secret, space, SECRET, dry_run="All") == taken


def test_what_is_not_there(either: Client) -> None:
    batch, core, space = either.batch, either.core, either.namespace
    missing = failure(batch.read_namespaced_job, "x", space)
    assert missing == (404, "NotFound", 'jobs.batch "x" not found')
    assert failure(core.patch_namespaced_secret, "x", space, {})[0] == 404
    assert failure(core.delete_namespaced_pod, "x", space)[0] == 404
    nowhere = failure(core.create_namespaced_secret, "nowhere", SECRET)
    assert nowhere == (404, "NotFound", 'namespaces "nowhere" not found')


def test_a_dry_run_leaves_nothing(either: Client) -> None:
    made = either.core.create_namespaced_secret(either.namespace, SECRET, dry_run="All")
    assert either.plain(made)["metadata"]["name"] == "key"
    assert failure(either.core.read_namespaced_secret, "key", either.namespace)[0] == 404


def test_a_patch_merges_and_one_that_changes_nothing_is_no_change(either: Client) -> None:
    core, space = either.core, either.namespace
    core.create_namespaced_secret(space, SECRET)
    first = core.patch_namespaced_secret("key", space, {"data": {"more": "eA=="}})
    assert either.plain(first)["data"] == {"key": "dmFsdWU=", "more": "eA=="}
    again = core.patch_namespaced_secret("key", space, {"data": {"more": "eA==", "less": None}})
    assert again.metadata.resource_version == first.metadata.resource_version


def test_a_wrong_job_is_refused(either: Client) -> None:
    with pytest.raises(ApiException) as caught:
        either.start(
            "true", main={"image": None, "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
        )
    assert caught.value.status == 422
    with pytest.raises(ApiException, match="arallelism"):
        either.start("true", parallelism="many")


def test_lists_come_in_pages(either: Client) -> None:
    for number in range(5):
        body = {"metadata": {"name": f"s-{number}", "labels": {"page": "yes"}}}
        either.core.create_namespaced_secret(either.namespace, body)
    names: list[str] = []
    token, versions = None, set()
    while True:
        page = either.plain(
            either.core.list_namespaced_secret(
                either.namespace, label_selector="page=yes", limit=2, _continue=token
            )
        )
        names += [it["metadata"]["name"] for it in page["items"]]
        versions.add(page["metadata"]["resourceVersion"])
        token = page["metadata"].get("continue")
        if not token:
            break
    assert names == [f"s-{number}" for number in range(5)]
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("labels", "found"), [("a=1", "x"), ("a in (1,2),mine=yes", "xy"), ("a=2,b=", "y"), ("a=3", "")]
)
def test_label_selectors(either: Client, labels: str, found: str) -> None:
    for name, own in {"x": {"a": "1"}, "y": {"a": "2", "b": ""}, "z": {}}.items():
        body = {"metadata": {"name": name, "labels": {**own, "mine": "yes"}}}
        either.core.create_namespaced_secret(either.namespace, body)
    listed = either.core.list_namespaced_secret(either.namespace, label_selector=labels)
    assert "".join(it["metadata"]["name"] for it in either.plain(listed)["items"]) == found


# -- owners


def test_a_job_is_deleted_with_its_pods_and_with_what_it_owns(either: Client) -> None:
    job = either.start("sleep 1000")
    either.running_pod(job)
    uid = either.job(job)["metadata"]["uid"]
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}
    for name in ("one", "two", "other"):
        either.core.create_namespaced_secret(
            either.namespace, {**SECRET, "metadata": {"name": name}}
        )
    owned: Any = {"metadata": {"ownerReferences": [reference]}}
    either.core.patch_namespaced_secret("one", either.namespace, owned)
    # One whose owner is not there any more goes as well.
    owned["metadata"]["ownerReferences"][0]["uid"] = "no-such-uid"
    either.core.create_namespaced_secret(
        either.namespace, {**SECRET, "metadata": {"name": "late", **owned["metadata"]}}
    )
    either.delete(job)
    mine = {"one", "two", "other", "late"}

    def left() -> set[str]:
        listed = either.core.list_namespaced_secret(either.namespace).items
        return mine & {it.metadata.name for it in listed}

    either.wait(lambda: left() == {"two", "other"} and not either.pods(job), "deletion")
    assert failure(either.batch.read_namespaced_job, job, either.namespace)[0] == 404


def test_a_collection_of_jobs_is_deleted(either: Client) -> None:
    names = [either.start("sleep 1000", name=name) for name in ("one", "two")]
    either.batch.delete_collection_namespaced_job(
        either.namespace, label_selector="test=one", propagation_policy="Background"
    )
    either.wait(lambda: not either.pods(names[0]), "deletion")
    left = either.plain(either.batch.list_namespaced_job(either.namespace))["items"]
    assert [it["metadata"]["name"] for it in left] == names[1:]


# -- watches


def test_a_watch_goes_on_where_a_list_ended(either: Client) -> None:
    core, space = either.core, either.namespace
    version = core.list_namespaced_secret(space).metadata.resource_version
    core.create_namespaced_secret(space, SECRET)
    core.patch_namespaced_secret("key", space, {"metadata": {"labels": {"in": "yes"}}})
    core.patch_namespaced_secret("key", space, {"metadata": {"labels": {"in": "no"}}})
    core.delete_namespaced_secret("key", space)

    def seen(labels: str, count: int) -> list[tuple[str, str | None]]:
        follower, found = watch.Watch(), []
        for event in follower.stream(
            core.list_namespaced_secret,
            space,
            resource_version=version,
            label_selector=labels,
            timeout_seconds=60,
        ):
            if event["raw_object"]["metadata"]["name"] == "key":
                own = event["raw_object"]["metadata"].get("labels", {})
                found.append((event["type"], own.get("in")))
            if len(found) == count:
                follower.stop()
        return found

    no = [("MODIFIED", "no"), ("DELETED", "no")]
    assert seen("", 4) == [("ADDED", None), ("MODIFIED", "yes"), *no]
    # What no longer matches is deleted to such a watch.
    assert [it for it, _ in seen("in=yes", 2)] == ["ADDED", "DELETED"]


# -- pods


def test_a_job_completes(either: Client) -> None:
    job = either.start("for i in $(seq 1000 3000); do echo -n $i; done > /dev/termination-log")
    status = either.finished(job)
    assert status["succeeded"] == 1
    assert status.get("active", 0) == status.get("failed", 0) == 0
    assert status["startTime"] and status["completionTime"]
    (pod,) = either.pods(job)
    ended = terminated(pod)
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    assert len(ended["message"]) == 4096 and ended["message"].endswith("29993000")
    assert pod["metadata"]["name"].startswith(f"{job}-")
    assert pod["metadata"]["ownerReferences"][0]["controller"] is True
    conditions = {it["type"]: it["status"] for it in pod["status"]["conditions"]}
    assert (conditions["Ready"], conditions["PodScheduled"]) == ("False", "True")


def test_a_failed_pod_is_made_again_up_to_the_limit(either: Client) -> None:
    job = either.start("exit 3", backoffLimit=1)
    status = either.finished(job)
    failed = status["conditions"]["Failed"]
    assert failed["reason"] == "BackoffLimitExceeded"
    assert failed["message"] == "Job has reached the specified backoff limit"
    assert status["failed"] == 2 and "completionTime" not in status
    assert [it["status"]["phase"] for it in either.pods(job)] == ["Failed", "Failed"]
    assert {terminated(it)["exitCode"] for it in either.pods(job)} == {3}


def test_what_a_container_is_given(either: Client) -> None:
    either.core.create_namespaced_secret(either.namespace, SECRET)
    volumes = [
        {"name": "run", "secret": {"secretName": "key", "defaultMode": 0o444}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [
        {"name": "run", "mountPath": "/run/secret", "readOnly": True},
        {"name": "tmp", "mountPath": "/scratch"},
    ]
    env = [{"name": "A", "value": "a b"}, {"name": "B", "value": "$(A) $(NOT) $$(A) $$"}]
    security = {"runAsUser": 1234, "runAsGroup": 99, "readOnlyRootFilesystem": True}
    script = (
        "cd /scratch; (cat /run/secret/key; echo; id -u; touch file && echo wrote;"
        'touch /file 2> /dev/null || echo read-only; echo "$B") > /dev/termination-log'
    )
    main = {"volumeMounts": mounts, "securityContext": security, "env": env}
    job = either.start(script, pod={"volumes": volumes}, main=main)
    either.finished(job)
    lines = terminated(either.pods(job)[0])["message"].splitlines()
    assert lines == ["value", "1234", "wrote", "read-only", "a b $(NOT) $(A) $"]


def test_a_pod_waits_for_its_secret(either: Client) -> None:
    pod = {"volumes": [{"name": "run", "secret": {"secretName": "later"}}]}
    main = {"volumeMounts": [{"name": "run", "mountPath": "/run/secret"}]}
    job = either.start("true", pod=pod, main=main)
    either.wait(lambda: waiting(either, job).get("reason") == "ContainerCreating", "status")
    either.core.create_namespaced_secret(either.namespace, {"metadata": {"name": "later"}})
    assert either.finished(job)["succeeded"] == 1


def waiting(client: Client, job: str) -> Any:
    """Why the container of a Job's pod waits."""
    statuses = [it["status"].get("containerStatuses", [{}])[0] for it in client.pods(job)]
    return statuses[0].get("state", {}).get("waiting", {}) if statuses else {}


def test_an_image_that_is_not_there(either: Client) -> None:
    job = either.start("true", main={"image": either.image.replace("busybox", "nothing")})
    seen = set()

    def both() -> bool:
        seen.add(waiting(either, job).get("reason"))
        return {"ErrImagePull", "ImagePullBackOff"} <= seen

    either.wait(both, "back-off")
    assert either.pods(job)[0]["status"]["phase"] == "Pending"


def test_readiness_is_a_port_that_accepts_connections(either: Client) -> None:
    probe = {"tcpSocket": {"port": 8123}, "periodSeconds": 1, "failureThreshold": 1}
    script = "sleep 1; nc -l -p 8123 -e true; sleep 1; nc -l -p 8123 -e true; sleep 1000"
    job = either.start(script, main={"readinessProbe": probe})
    either.running_pod(job)

    def ready() -> bool:
        conditions = either.pods(job)[0]["status"]["conditions"]
        return "True" in [it["status"] for it in conditions if it["type"] == "Ready"]

    either.wait(ready, "readiness")
    either.wait(lambda: not ready(), "end of it")


def test_a_deleted_pod_has_its_time_to_end_and_is_made_again(either: Client) -> None:
    script = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done"
    job = either.start(script, pod={"terminationGracePeriodSeconds": 30}, backoffLimit=6)
    name = either.running_pod(job)
    deleted = either.plain(either.core.delete_namespaced_pod(name, either.namespace))
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 30
    either.wait(lambda: name not in [it["metadata"]["name"] for it in either.pods(job)], "deletion")
    either.running_pod(job)


# -- exec


@pytest.fixture
def running(either: Client) -> tuple[Client, str]:
    return either, either.running_pod(either.start("sleep 1000"))


@contextlib.contextmanager
def execute(client: Client, pod: str, script: str) -> Iterator[Any]:
    connection = stream(
        client.core.connect_get_namespaced_pod_exec,
        pod,
        client.namespace,
        command=["/busybox", "sh", "-c", script],
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    try:
        yield connection
    finally:
        connection.close()
        # The client closes its socket only if the server has sent a close frame.
        connection.sock.shutdown()


def test_exec_has_channels_and_an_exit_code(running: tuple[Client, str]) -> None:
    with execute(*running, 'read line; echo "got $line"; echo err >&2; exit 5') as connection:
        connection.write_stdin("hello\n")
        connection.run_forever(timeout=60)
        assert connection.read_stdout() == "got hello\n"
        assert connection.read_stderr() == "err\n"
        assert connection.returncode == 5


def test_exec_carries_much(running: tuple[Client, str]) -> None:
    with execute(*running, "dd if=/dev/zero bs=1024 count=3000 | tr '\\0' x") as connection:
        connection.run_forever(timeout=60)
        assert len(connection.read_stdout()) == 3000 * 1024
        assert connection.returncode == 0


def test_exec_where_nothing_runs(either: Client) -> None:
    job = either.start("true")
    either.finished(job)
    name = either.pods(job)[0]["metadata"]["name"]
    settings = either.api.configuration
    host = settings.host.replace("https:", "wss:")
    path = f"/api/v1/namespaces/{either.namespace}/pods/{name}/exec?command=true&stdout=true"
    files = {
        "ca_certs": settings.ssl_ca_cert,
        "certfile": settings.cert_file,
        "keyfile": settings.key_file,
    }
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(host + path, sslopt=files, timeout=60)
    assert caught.value.status_code == 500
    assert caught.value.resp_body == b'container not found ("main")'
