"""What the played cluster claims, said of the real one too, so that it does not drift."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import websocket
from kubernetes import watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.kubernetes_server.peers import Peer

SECRET = {"metadata": {"name": "key"}, "stringData": {"key": "value"}}


def failure(request: Any, *arguments: Any, **options: Any) -> tuple[int, str, str]:
    """Code, reason and message with which a request is refused."""
    with pytest.raises(ApiException) as caught:
        request(*arguments, **options)
    status = json.loads(str(caught.value.body))
    return caught.value.status, status["reason"], status["message"]


# -- objects


def test_a_name_is_taken_once(either: Peer) -> None:
    made = either.plain(either.core.create_namespaced_secret(either.namespace, SECRET))
    assert made["data"] == {"key": "dmFsdWU="}
    assert made["type"] == "Opaque"
    assert made["metadata"]["uid"] and made["metadata"]["resourceVersion"]
    refused = failure(either.core.create_namespaced_secret, either.namespace, SECRET)
    assert refused == (409, "AlreadyExists", 'secrets "key" already exists')


def test_what_is_not_there(either: Peer) -> None:
    batch, core, space = either.batch, either.core, either.namespace
    missing = failure(batch.read_namespaced_job, "x", space)
    assert missing == (404, "NotFound", 'jobs.batch "x" not found')
    assert failure(core.delete_namespaced_secret, "x", space)[0] == 404
    nowhere = failure(core.create_namespaced_secret, "nowhere", SECRET)
    assert nowhere == (404, "NotFound", 'namespaces "nowhere" not found')
    assert failure(core.read_namespaced_pod_log, "x", space)[2] == 'pods "x" not found'


def test_a_stale_version_conflicts(either: Peer) -> None:
    old = either.plain(either.core.create_namespaced_secret(either.namespace, SECRET))
    new = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}
    changed = either.plain(either.core.replace_namespaced_secret("key", either.namespace, new))
    assert int(changed["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])
    code, reason, message = failure(
        either.core.replace_namespaced_secret, "key", either.namespace, new
    )
    assert (code, reason) == (409, "Conflict")
    assert message == (
        'Operation cannot be fulfilled on secrets "key": the object has been modified; please'
        " apply your changes to the latest version and try again"
    )


def test_a_change_that_changes_nothing_is_none(either: Peer) -> None:
    made = either.plain(either.core.create_namespaced_secret(either.namespace, SECRET))
    same = {"metadata": {"labels": None}}
    patched = either.plain(either.core.patch_namespaced_secret("key", either.namespace, same))
    assert patched["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_a_dry_run_checks_and_leaves_nothing(either: Peer) -> None:
    space = either.namespace
    made = either.core.create_namespaced_secret(space, SECRET, dry_run="All")
    assert either.plain(made)["metadata"]["name"] == "key"
    assert failure(either.core.read_namespaced_secret, "key", space)[0] == 404
    either.core.create_namespaced_secret(space, SECRET)
    again = failure(either.core.create_namespaced_secret, space, SECRET, dry_run="All")
    assert again[:2] == (409, "AlreadyExists")


def test_names_are_generated(either: Peer) -> None:
    body = {"metadata": {"generateName": "some-"}}
    made = either.plain(either.core.create_namespaced_secret(either.namespace, body))
    assert re.fullmatch(r"some-[a-z0-9]{5}", made["metadata"]["name"])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"parallelism": "many"}, 400, "arallelism"),
        ({"parallelism": -1}, 422, "must be greater than or equal to 0"),
        ({"template": None}, 422, "Required value"),
        ({"template": {"spec": {"restartPolicy": "Always"}}}, 422, 'valid values: "OnFailure", "Never"'),
        ({"template": {"spec": {"containers": [{"name": "a"}]}}}, 422, "image: Required value"),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused(
    either: Peer, change: dict[str, Any], code: int, message: str
) -> None:
    container = {"name": "main", "image": either.image}
    pod = {"restartPolicy": "Never", "containers": [container]}
    pod.update((change.get("template") or {}).get("spec", {}))
    spec = {"template": {"spec": pod}, **change}
    if change.get("template"):
        spec["template"] = {"spec": pod}
    if change.get("template", 1) is None:
        del spec["template"]
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "wrong"}, "spec": spec}
    path = f"/apis/batch/v1/namespaces/{either.namespace}/jobs"
    refused = raw(either, "POST", path, body)
    assert refused["code"] == code
    assert message in refused["message"]


def raw(peer: Peer, method: str, path: str, body: Any = None) -> Any:
    """The JSON that a request is answered with, whatever its code."""
    configuration = peer.client.configuration
    import urllib3

    pool = urllib3.PoolManager(
        ca_certs=configuration.ssl_ca_cert,
        cert_file=configuration.cert_file,
        key_file=configuration.key_file,
    )
    with pool:
        answer = pool.request(
            method, configuration.host + path, json=body, retries=False, timeout=60
        )
        return answer.json()


def test_a_wrong_name_is_refused(either: Peer) -> None:
    code, reason, message = failure(
        either.core.create_namespaced_secret, either.namespace, {"metadata": {"name": "No_Name"}}
    )
    assert (code, reason) == (422, "Invalid")
    assert message.startswith(
        'Secret "No_Name" is invalid: metadata.name: Invalid value: "No_Name": a'
    )


def test_a_job_may_not_change_its_template(either: Peer) -> None:
    job = either.start("true")
    change = {"spec": {"template": {"spec": {"restartPolicy": "OnFailure"}}}}
    code, reason, message = failure(
        either.batch.patch_namespaced_job, job, either.namespace, change
    )
    assert (code, reason) == (422, "Invalid")
    assert "field is immutable" in message


def test_lists_come_in_pages(either: Peer) -> None:
    for number in range(5):
        name = {"metadata": {"name": f"cm-{number}", "labels": {"page": "yes"}}}
        either.core.create_namespaced_config_map(either.namespace, name)
    names: list[str] = []
    token, versions = None, set()
    while True:
        page = either.plain(
            either.core.list_namespaced_config_map(
                either.namespace, label_selector="page", limit=2, _continue=token
            )
        )
        names += [it["metadata"]["name"] for it in page["items"]]
        versions.add(page["metadata"]["resourceVersion"])
        token = page["metadata"].get("continue")
        if not token:
            break
    assert names == [f"cm-{number}" for number in range(5)]
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("labels", "found"),
    [("a=1", "x"), ("a!=1", "yz"), ("a", "xy"), ("!a", "z"), ("a in (1,2),b", "y"), ("a notin (1)", "yz")],
)  # fmt: skip
def test_label_selectors(either: Peer, labels: str, found: str) -> None:
    for name, own in {"x": {"a": "1"}, "y": {"a": "2", "b": ""}, "z": {"test": "z"}}.items():
        own = {**own, "mine": "yes"}
        body = {"metadata": {"name": name, "labels": own}}
        either.core.create_namespaced_config_map(either.namespace, body)
    listed = either.core.list_namespaced_config_map(
        either.namespace, label_selector=f"{labels},mine=yes"
    )
    assert "".join(it["metadata"]["name"] for it in either.plain(listed)["items"]) == found


def test_a_field_selector_that_is_not_known(either: Peer) -> None:
    refused = failure(
        either.core.list_namespaced_pod, either.namespace, field_selector="spec.color=red"
    )
    assert refused[0] == 400
    assert "field label not supported" in refused[2]


def test_a_collection_is_deleted(either: Peer) -> None:
    for name in ("one", "two", "other"):
        labels = {"go": "no" if name == "other" else "yes"}
        body = {"metadata": {"name": name, "labels": labels}}
        either.core.create_namespaced_secret(either.namespace, body)
    either.core.delete_collection_namespaced_secret(either.namespace, label_selector="go=yes")
    left = either.core.list_namespaced_secret(either.namespace, label_selector="go")
    assert [it["metadata"]["name"] for it in either.plain(left)["items"]] == ["other"]


# -- owners


def owned(peer: Peer, job: str) -> Any:
    uid = peer.job(job)["metadata"]["uid"]
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}
    return {**SECRET, "metadata": {"name": "key", "ownerReferences": [reference]}}


def secrets_left(peer: Peer) -> list[str]:
    listed = peer.plain(peer.core.list_namespaced_secret(peer.namespace))["items"]
    return [it["metadata"]["name"] for it in listed if it["metadata"]["name"] == "key"]


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_what_a_job_owns_goes_with_it(either: Peer, policy: str) -> None:
    job = either.start("true")
    either.core.create_namespaced_secret(either.namespace, owned(either, job))
    either.finished(job)
    either.batch.delete_namespaced_job(job, either.namespace, propagation_policy=policy)
    either.wait(lambda: not secrets_left(either) and not either.pods(job), "deletion")
    assert failure(either.batch.read_namespaced_job, job, either.namespace)[0] == 404


def test_a_job_that_is_deleted_plainly_leaves_its_pods_and_secrets(either: Peer) -> None:
    job = either.start("true")
    either.core.create_namespaced_secret(either.namespace, owned(either, job))
    either.finished(job)
    either.batch.delete_namespaced_job(job, either.namespace)
    either.wait(
        lambda: "ownerReferences" not in (either.pods(job) or [{"metadata": {}}])[0]["metadata"],
        "orphan",
    )
    assert len(either.pods(job)) == 1
    assert secrets_left(either) == ["key"]


def test_an_owner_that_is_not_there_has_nothing(either: Peer) -> None:
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "x", "uid": "no-such-uid"}
    body = {**SECRET, "metadata": {"name": "key", "ownerReferences": [reference]}}
    either.core.create_namespaced_secret(either.namespace, body)
    either.wait(lambda: not secrets_left(either), "deletion")


def test_an_owner_is_added_by_a_patch(either: Peer) -> None:
    job = either.start("true")
    either.core.create_namespaced_secret(either.namespace, SECRET)
    change = {"metadata": {"ownerReferences": owned(either, job)["metadata"]["ownerReferences"]}}
    made = either.core.patch_namespaced_secret("key", either.namespace, change)
    assert either.plain(made)["metadata"]["ownerReferences"][0]["name"] == job
    either.batch.delete_namespaced_job(job, either.namespace, propagation_policy="Background")
    either.wait(lambda: not secrets_left(either), "deletion")


# -- watches


def test_a_watch_goes_on_where_a_list_ended(either: Peer) -> None:
    core, space = either.core, either.namespace
    version = either.plain(core.list_namespaced_secret(space))["metadata"]["resourceVersion"]
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

    assert seen("", 4) == [
        ("ADDED", None),
        ("MODIFIED", "yes"),
        ("MODIFIED", "no"),
        ("DELETED", "no"),
    ]
    # What no longer matches is gone for such a watch, and shown as it was or is.
    assert [it for it, _ in seen("in=yes", 2)] == ["ADDED", "DELETED"]


def test_a_watch_ends_when_its_time_is_over(either: Peer) -> None:
    started = time.monotonic()
    found = list(
        watch.Watch().stream(
            either.core.list_namespaced_config_map,
            either.namespace,
            label_selector="none=such",
            timeout_seconds=1,
        )
    )
    assert found == []
    assert 0.9 < time.monotonic() - started < 30


# -- pods


def test_a_job_completes(either: Peer) -> None:
    job = either.start("echo out; echo -n done > /dev/termination-log")
    state = either.terminated(job)
    assert (state["exitCode"], state["reason"], state["message"]) == (0, "Completed", "done")
    status = either.finished(job)
    assert status["succeeded"] == 1
    assert status.get("active", 0) == status.get("failed", 0) == 0
    assert status["startTime"] and status["completionTime"]
    pod = either.pod(job)
    assert pod["metadata"]["name"].startswith(f"{job}-")
    assert pod["metadata"]["labels"]["job-name"] == job
    assert pod["metadata"]["ownerReferences"][0]["controller"] is True
    by_type = {it["type"]: it for it in pod["status"]["conditions"]}
    assert by_type["Ready"]["status"] == "False" and by_type["Ready"]["reason"] == "PodCompleted"
    assert by_type["PodScheduled"]["status"] == "True"
    reasons = {reason for reason, _ in either.events(job)}
    assert {"SuccessfulCreate", "Completed"} <= reasons
    assert {"Scheduled", "Started"} <= {it for it, _ in either.events(pod["metadata"]["name"])}


def test_a_job_fails(either: Peer) -> None:
    job = either.start("exit 3")
    state = either.terminated(job)
    assert (state["exitCode"], state["reason"], state.get("message")) == (3, "Error", None)
    status = either.finished(job)
    failed = status["conditions"]["Failed"]
    assert failed["reason"] == "BackoffLimitExceeded"
    assert failed["message"] == "Job has reached the specified backoff limit"
    assert status["failed"] == 1
    assert "completionTime" not in status


def test_a_failed_pod_is_made_again(either: Peer) -> None:
    job = either.start("exit 3", backoffLimit=1)
    assert either.finished(job)["failed"] == 2
    assert [it["status"]["phase"] for it in either.pods(job)] == ["Failed", "Failed"]


def test_several_completions_side_by_side(either: Peer) -> None:
    job = either.start("true", completions=3, parallelism=2)
    assert either.finished(job)["succeeded"] == 3
    assert len(either.pods(job)) == 3


def test_a_job_has_a_deadline(either: Peer) -> None:
    job = either.start("sleep 100", activeDeadlineSeconds=1)
    failed = either.finished(job)["conditions"]["Failed"]
    assert failed["reason"] == "DeadlineExceeded"
    assert failed["message"] == "Job was active longer than specified deadline"
    either.wait(lambda: not either.pods(job), "deletion of the pod")


def test_a_pod_has_a_deadline(either: Peer) -> None:
    job = either.start("sleep 100", pod={"activeDeadlineSeconds": 1})
    status = either.reach(job, "Failed")["status"]
    assert status["reason"] == "DeadlineExceeded"
    assert "active on the node longer than" in status["message"]


def test_a_finished_job_is_deleted_after_its_time(either: Peer) -> None:
    job = either.start("true", ttlSecondsAfterFinished=1)

    def gone() -> bool:
        listed = either.plain(either.batch.list_namespaced_job(either.namespace))
        return job not in [it["metadata"]["name"] for it in listed["items"]]

    either.wait(gone, "deletion")


def test_the_end_of_a_long_termination_message_is_kept(either: Peer) -> None:
    job = either.start("for i in $(seq 1000 3000); do echo -n $i; done > /dev/termination-log")
    message = either.terminated(job)["message"]
    assert len(message) == 4096
    assert message.endswith("29993000")


def test_the_log_stands_in_for_a_message_that_is_missing(either: Peer) -> None:
    job = either.start(
        "echo why; exit 1", main={"terminationMessagePolicy": "FallbackToLogsOnError"}
    )
    assert either.terminated(job)["message"].strip() == "why"


def test_a_secret_and_an_empty_directory(either: Peer) -> None:
    either.core.create_namespaced_secret(either.namespace, SECRET)
    volumes = [
        {"name": "run", "secret": {"secretName": "key", "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [
        {"name": "run", "mountPath": "/run/secret", "readOnly": True},
        {"name": "tmp", "mountPath": "/scratch"},
    ]
    security = {"runAsUser": 1234, "runAsGroup": 99, "readOnlyRootFilesystem": True}
    script = (
        "cat /run/secret/key; echo; id -u; touch /scratch/file && echo wrote;"
        "touch /file 2> /dev/null || echo read-only"
    )
    main = {"volumeMounts": mounts, "securityContext": security}
    pod = {"volumes": volumes, "securityContext": {"fsGroup": 99}}
    job = either.start(script, pod=pod, main=main)
    name = either.reach(job, "Succeeded")["metadata"]["name"]
    log = either.log(name)
    assert log.split() == ["value", "1234", "wrote", "read-only"]


def test_a_pod_waits_for_its_secret(either: Peer) -> None:
    pod = {"volumes": [{"name": "run", "secret": {"secretName": "later"}}]}
    main = {"volumeMounts": [{"name": "run", "mountPath": "/run/secret"}]}
    job = either.start("true", pod=pod, main=main)
    name = either.pod(job)["metadata"]["name"]
    either.wait(lambda: "FailedMount" in [it for it, _ in either.events(name)], "FailedMount")
    assert any('secret "later" not found' in text for _, text in either.events(name))
    assert either.waiting(job)["reason"] == "ContainerCreating"
    late = {"metadata": {"name": "later"}}
    either.core.create_namespaced_secret(either.namespace, late)
    either.reach(job, "Succeeded")


def test_variables(either: Peer) -> None:
    env = [
        {"name": "A", "value": "a b"},
        {"name": "B", "value": "$(A) $(NOT) $$(A)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    job = either.start('echo "$B"; echo "$POD"', main={"env": env})
    name = either.reach(job, "Succeeded")["metadata"]["name"]
    log = either.log(name)
    assert log == f"a b $(NOT) $(A)\n{name}\n"


def test_root_where_it_must_not_be(either: Peer) -> None:
    job = either.start("true", main={"securityContext": {"runAsNonRoot": True, "runAsUser": 0}})
    reason = "CreateContainerConfigError"
    either.wait(lambda: either.waiting(job).get("reason") == reason, reason)


def test_an_image_that_is_not_there(either: Peer) -> None:
    wrong = either.image.replace("busybox", "nothing")
    job = either.start("true", main={"image": wrong})
    seen = set()

    def both() -> bool:
        seen.add(either.waiting(job).get("reason"))
        return {"ErrImagePull", "ImagePullBackOff"} <= seen

    either.wait(both, "back-off")
    name = either.pod(job)["metadata"]["name"]
    assert any(
        text.startswith(f'Failed to pull image "{wrong}": ') for _, text in either.events(name)
    )
    assert any(text == f'Back-off pulling image "{wrong}"' for _, text in either.events(name))
    assert either.pod(job)["status"]["phase"] == "Pending"


def test_a_selector_that_no_node_has(either: Peer) -> None:
    job = either.start("true", pod={"nodeSelector": {"color": "red"}})

    def condition() -> Any:
        listed = either.pod(job)["status"].get("conditions", [])
        return next((it for it in listed if it["type"] == "PodScheduled"), {})

    either.wait(lambda: condition().get("reason") == "Unschedulable", "Unschedulable")
    assert condition()["status"] == "False"
    assert condition()["message"].startswith("0/")
    name = either.pod(job)["metadata"]["name"]
    assert "FailedScheduling" in [it for it, _ in either.events(name)]


def test_a_pod_is_told_to_end(either: Peer) -> None:
    script = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    job = either.start(script, pod={"terminationGracePeriodSeconds": 30}, backoffLimit=6)
    name = either.reach(job, "Running")["metadata"]["name"]
    either.wait(lambda: either.log(name) == "up\n", "output")
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(follow(either, name)))
    follower.start()
    either.wait(lambda: lines == ["up"], "a followed line")
    deleted = either.plain(either.core.delete_namespaced_pod(name, either.namespace))
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 30
    follower.join(60)
    # A kubelet of 1.20 may add that it no longer finds the container.
    assert lines[:2] == ["up", "told"]
    either.wait(lambda: name not in [it["metadata"]["name"] for it in either.pods(job)], "deletion")


def follow(peer: Peer, name: str) -> Any:
    answer = peer.core.read_namespaced_pod_log(
        name, peer.namespace, follow=True, _preload_content=False
    )
    for line in answer:
        yield line.decode().rstrip("\n")


# -- logs


def test_logs(either: Peer) -> None:
    job = either.start("for i in 1 2 3; do echo line $i; done; echo -n end")
    name = either.reach(job, "Succeeded")["metadata"]["name"]

    def read(**options: Any) -> str:
        return either.log(name, **options)

    assert read() == "line 1\nline 2\nline 3\nend"
    assert read(tail_lines=2) == "line 3\nend"
    assert read(limit_bytes=6) == "line 1"
    assert read(since_seconds=3600) == read(follow=True) == read(container="main") == read()
    stamped = read(timestamps=True).splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z (line \d|end)$", it) for it in stamped
    )
    assert (
        failure(either.core.read_namespaced_pod_log, name, either.namespace, container="x")[0]
        == 400
    )


def test_a_log_before_there_is_one(either: Peer) -> None:
    pod = {"volumes": [{"name": "run", "secret": {"secretName": "never"}}]}
    main = {"volumeMounts": [{"name": "run", "mountPath": "/run/secret"}]}
    job = either.start("true", pod=pod, main=main)
    name = either.pod(job)["metadata"]["name"]
    either.wait(lambda: bool(either.waiting(job)), "a status")
    code, reason, message = failure(either.core.read_namespaced_pod_log, name, either.namespace)
    assert (code, reason) == (400, "BadRequest")
    assert message == f'container "main" in pod "{name}" is waiting to start: ContainerCreating'


# -- exec


@pytest.fixture
def running(either: Peer) -> tuple[Peer, str]:
    job = either.start("sleep 1000")
    return either, either.reach(job, "Running")["metadata"]["name"]


@contextlib.contextmanager
def execute(peer: Peer, pod: str, script: str, stdin: bool = False) -> Iterator[Any]:
    connection = stream(
        peer.core.connect_get_namespaced_pod_exec,
        pod,
        peer.namespace,
        command=["/busybox", "sh", "-c", script],
        stdin=stdin,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    try:
        yield connection
    finally:
        connection.close()
        # The client thinks that it is closed when the other side has said so.
        connection.sock.shutdown()


def test_exec_has_channels_and_an_exit_code(running: tuple[Peer, str]) -> None:
    with execute(*running, "echo out; echo err >&2; exit 5") as connection:
        connection.run_forever(timeout=60)
        assert connection.read_stdout() == "out\n"
        assert connection.read_stderr() == "err\n"
        assert connection.returncode == 5


def test_exec_reads_what_is_sent(running: tuple[Peer, str]) -> None:
    with execute(*running, 'read line; echo "got $line"', stdin=True) as connection:
        connection.write_stdin("hello\n")
        connection.run_forever(timeout=60)
        assert connection.read_stdout() == "got hello\n"
        assert connection.returncode == 0


def test_exec_carries_much(running: tuple[Peer, str]) -> None:
    script = "dd if=/dev/zero bs=1024 count=3000 2> /dev/null | tr '\\0' x"
    with execute(*running, script) as connection:
        connection.run_forever(timeout=60)
        assert len(connection.read_stdout()) == 3000 * 1024


def test_exec_where_nothing_runs(either: Peer) -> None:
    job = either.start("true")
    name = either.reach(job, "Succeeded")["metadata"]["name"]
    query = "command=true&stdout=true"
    host = either.client.configuration.host.replace("https:", "wss:")
    path = f"/api/v1/namespaces/{either.namespace}/pods/{name}/exec?{query}"
    configuration = either.client.configuration
    files = {
        "ca_certs": configuration.ssl_ca_cert,
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
    }
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(host + path, sslopt=files, timeout=60)
    assert caught.value.status_code == 500
    assert caught.value.resp_body == b'container not found ("main")'


# -- access


def test_what_may_be_done(either: Peer) -> None:
    asked = {"namespace": either.namespace, "verb": "create", "group": "batch", "resource": "jobs"}
    base = "/apis/authorization.k8s.io/v1/selfsubject"
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    body = {**review, "spec": {"resourceAttributes": asked}}
    assert raw(either, "POST", f"{base}accessreviews", body)["status"]["allowed"] is True
    rules = {**review, "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}}
    assert raw(either, "POST", f"{base}rulesreviews", rules)["status"]["resourceRules"]
