"""What a test can do to the played cluster, and how that looks from outside."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import watch
from kubernetes.client.exceptions import ApiException

from tests.clusters.daemon import wait_until
from tests.kubernetes_server import Server, parts
from tests.kubernetes_server.conftest import connected
from tests.kubernetes_server.peers import Peer

SLEEP: dict[str, Any] = {"pod": {"terminationGracePeriodSeconds": 1}}


def running(peer: Peer, **spec: Any) -> tuple[str, str]:
    """A Job whose pod runs, and the pod."""
    job = peer.start("sleep 1000", **SLEEP, **spec)
    return job, peer.reach(job, "Running")["metadata"]["name"]


def patient(peer: Peer, retries: int) -> None:
    peer.client.rest_client.pool_manager.connection_pool_kw["retries"] = retries


@pytest.mark.parametrize("code", [429, 500, 503])
def test_answers_that_go_wrong(server: Server, peer: Peer, code: int) -> None:
    patient(peer, 0)
    server.faults.refuse("list", "pods", code, times=2, retry_after=1)
    for _ in range(2):
        with pytest.raises((ApiException, urllib3.exceptions.MaxRetryError)) as caught:
            peer.core.list_namespaced_pod("default")
        if isinstance(caught.value, ApiException):
            assert caught.value.status == code
            assert caught.value.headers["Retry-After"] == "1"
    peer.core.list_namespaced_pod("default")
    assert sum(count for it, count in server.requests().items() if it[:2] == ("list", "pods")) == 3
    assert {it.agent for it in server.requests()} == {"test"}


def test_a_reply_that_is_lost(server: Server, peer: Peer) -> None:
    patient(peer, 0)
    server.faults.lose_reply("create", "jobs")
    with pytest.raises(urllib3.exceptions.HTTPError):
        peer.start("true", name="mine")
    assert peer.finished("mine")["succeeded"] == 1


def test_a_request_that_never_arrives(server: Server, peer: Peer) -> None:
    patient(peer, 0)
    server.faults.cut("create", "jobs")
    with pytest.raises(urllib3.exceptions.HTTPError):
        peer.start("true", name="mine")
    with pytest.raises(ApiException, match="404"):
        peer.job("mine")


def test_a_conflict(server: Server, peer: Peer) -> None:
    job, _ = running(peer)
    server.faults.conflict("patch", "jobs")
    with pytest.raises(ApiException, match="409"):
        peer.batch.patch_namespaced_job(job, "default", {"spec": {"suspend": True}})


def test_a_request_that_hangs(server: Server, peer: Peer) -> None:
    go_on = server.faults.hang("get", "version")
    done = threading.Event()

    def ask() -> None:
        from kubernetes.client import VersionApi

        VersionApi(peer.client).get_code()
        done.set()

    asker = threading.Thread(target=ask)
    asker.start()
    wait_until(lambda: bool(server.requests()), 30)
    assert not done.wait(0.2)
    go_on()
    asker.join(30)
    assert done.is_set()


def test_a_watch_that_is_too_old(server: Server, peer: Peer) -> None:
    listed = peer.plain(peer.core.list_namespaced_pod("default"))
    version = listed["metadata"]["resourceVersion"]
    server.faults.expire_window()
    with pytest.raises(ApiException) as caught:
        list(follow(peer, version))
    assert caught.value.status == 410
    assert str(caught.value.reason).startswith(f"Expired: too old resource version: {version} (")


def follow(peer: Peer, version: str = "0") -> Any:
    return watch.Watch().stream(
        peer.core.list_namespaced_pod, "default", resource_version=version, timeout_seconds=60
    )


@pytest.mark.parametrize("how", ["expire", "close", "cut"])
def test_a_watch_that_ends(server: Server, peer: Peer, how: str) -> None:
    ends: list[BaseException | None] = []
    raw: list[bytes] = []

    def read() -> None:
        try:
            answer = peer.core.list_namespaced_pod(
                "default", watch=True, timeout_seconds=60, _preload_content=False
            )
            with answer:
                raw.extend(answer)
            ends.append(None)
        except urllib3.exceptions.HTTPError as error:
            ends.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert wait_until(lambda: server.open_watches() == 1, 30)
    if how == "expire":
        server.faults.expire_watches()
    else:
        server.faults.close_watches(abruptly=how == "cut")
    reader.join(30)
    assert (ends[0] is not None) is (how == "cut")
    assert any(b'"code": 410' in it for it in raw) is (how == "expire")
    assert wait_until(lambda: server.open_watches() == 0, 30)


def test_bookmarks_tell_where_to_go_on(server: Server, peer: Peer) -> None:
    peer.core.create_namespaced_secret("default", {"metadata": {"name": "x"}})
    follower = watch.Watch()
    for event in follower.stream(
        peer.core.list_namespaced_pod,
        "default",
        allow_watch_bookmarks=True,
        timeout_seconds=60,
    ):
        assert event["type"] == "BOOKMARK"
        assert int(event["raw_object"]["metadata"]["resourceVersion"]) > 1000
        follower.stop()


def test_the_server_goes_down_and_comes_back_with_all_it_knew(server: Server, peer: Peer) -> None:
    patient(peer, 0)
    job = peer.start("sleep 0.5")
    server.take_down()
    with pytest.raises(urllib3.exceptions.HTTPError):
        peer.job(job)
    server.bring_up()
    assert peer.finished(job)["succeeded"] == 1


def test_finished_pods_are_collected(server: Server, peer: Peer) -> None:
    job = peer.start("true")
    peer.finished(job)
    assert server.faults.collect_pods("default", job) == 1
    assert peer.pods(job) == []
    assert peer.job(job)["status"]["succeeded"] == 1


def test_out_of_memory(server: Server, peer: Peer) -> None:
    job, pod = running(peer)
    server.faults.out_of_memory("default", pod)
    state = peer.terminated(job)
    assert (state["exitCode"], state["reason"]) == (137, "OOMKilled")
    assert peer.finished(job)["failed"] == 1


def test_a_container_that_is_killed(server: Server, peer: Peer) -> None:
    job, pod = running(peer)
    server.faults.kill_container("default", pod)
    state = peer.terminated(job)
    assert (state["exitCode"], state["reason"]) == (137, "Error")


def test_a_preempted_pod_is_made_again(server: Server, peer: Peer) -> None:
    job, pod = running(peer, backoffLimit=3)
    server.faults.preempt("default", pod)
    peer.wait(lambda: pod not in [it["metadata"]["name"] for it in peer.pods(job)], "deletion")
    peer.wait(lambda: bool(peer.pods(job)), "a new pod")


def test_a_node_that_is_lost(server: Server, peer: Peer) -> None:
    job, pod = running(peer, backoffLimit=3)
    node = peer.pod(job)["spec"]["nodeName"]
    server.faults.lose_node(node)
    lost = peer.plain(peer.core.read_namespaced_pod(pod, "default"))
    assert "deletionTimestamp" in lost["metadata"]
    assert lost["status"]["phase"] == "Running"
    assert any(it["type"] == "DisruptionTarget" for it in lost["status"]["conditions"])
    with pytest.raises(ApiException, match="no route to host"):
        peer.log(pod)
    server.faults.remove_node(node)
    peer.wait(lambda: pod not in [it["metadata"]["name"] for it in peer.pods(job)], "deletion")
    peer.wait(lambda: bool(peer.pods(job)), "a new pod")
    other = peer.reach(job, "Running")
    assert other["spec"]["nodeName"] != node


def test_a_pull_that_heals(server: Server, peer: Peer) -> None:
    server.faults.refuse_pulls("busybox", "429 toomanyrequests: slow down")
    job = peer.start("true")
    peer.wait(lambda: "toomanyrequests" in peer.waiting(job).get("message", ""), "the words")
    server.faults.heal_nodes()
    assert peer.finished(job)["succeeded"] == 1


def test_unschedulable_for_a_while(server: Server, peer: Peer) -> None:
    words = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    server.faults.refuse_scheduling(words)
    job = peer.start("true")
    peer.wait(lambda: words in str(peer.pod(job)["status"].get("conditions")), "the words")
    server.faults.heal_nodes()
    assert peer.finished(job)["succeeded"] == 1


def test_quota_and_admission(server: Server, peer: Peer) -> None:
    server.faults.exceed_quota()
    job = peer.start("true")
    peer.wait(lambda: "FailedCreate" in [it for it, _ in peer.events(job)], "an event")
    words = next(text for reason, text in peer.events(job) if reason == "FailedCreate")
    assert "is forbidden: exceeded quota: compute, requested: pods=1" in words
    server.faults.allow()
    assert peer.finished(job)["succeeded"] == 1
    server.faults.refuse_admission("jobs", "images must be signed")
    with pytest.raises(ApiException) as caught:
        peer.start("true")
    assert caught.value.status == 403
    assert "denied the request: images must be signed" in str(caught.value.body)


def test_what_is_forbidden(server: Server, peer: Peer) -> None:
    server.faults.deny("create", "pods/exec")
    server.faults.deny("list", "secrets")
    with pytest.raises(ApiException) as caught:
        peer.core.list_namespaced_secret("default")
    words = 'User \\"tester\\" cannot list resource \\"secrets\\" in API group \\"\\"'
    assert caught.value.status == 403 and words in str(caught.value.body)


def test_who_may_ask(server: Server) -> None:
    anonymous = urllib3.PoolManager(ca_certs=str(server.directory / "keys" / "ca.pem"))
    with anonymous:
        assert anonymous.request("GET", f"{server.url}/api/v1/pods").status == 401
    from kubernetes import client, config

    bearer = config.new_client_from_config(str(server.kubeconfig(token=True)))
    client.CoreV1Api(bearer).list_namespaced_pod("default")
    bearer.close()
    bearer.rest_client.pool_manager.clear()
    late = config.new_client_from_config(str(server.kubeconfig(days=-1)))
    late.rest_client.pool_manager.connection_pool_kw["retries"] = 0
    with pytest.raises((urllib3.exceptions.HTTPError, ApiException)):
        client.CoreV1Api(late).list_namespaced_pod("default")
    late.close()
    late.rest_client.pool_manager.clear()


def test_readiness_is_a_port_that_answers(peer: Peer) -> None:
    probe = {"tcpSocket": {"port": 8123}, "periodSeconds": 1}
    script = "sleep 0.5; nc -l -p 8123 -e true; sleep 0.5; nc -l -p 8123 -e true; sleep 1000"
    job = peer.start(script, main={"readinessProbe": probe}, **SLEEP)

    def ready() -> bool:
        conditions = peer.reach(job, "Running")["status"]["conditions"]
        return "True" in [it["status"] for it in conditions if it["type"] == "Ready"]

    assert not ready()
    peer.wait(ready, "readiness")
    peer.wait(lambda: not ready(), "the end of it")


_KILLED = """
import signal, sys, time
# Who started the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from tests.kubernetes_server import Server, parts
directory = Path(sys.argv[1])
pull = parts.pull_busybox(parts.busybox_root(directory))
with Server(directory / "server", pull) as server:
    print(server.kubeconfig(), flush=True)
    time.sleep(600)
"""


def processes(word: str) -> list[int]:
    """Those that have a word on their command line, this one excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if word.encode() in words and b"pytest" not in words:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_nothing_is_left(tmp_path: Path, how: str) -> None:
    from kubernetes import client, config

    seconds = str(100_000_000 + secrets.randbelow(100_000_000))
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        api = config.new_client_from_config(process.stdout.readline().strip())
        try:
            main = {"securityContext": {"runAsUser": 1234}}
            body = parts.job("left", f"sleep {seconds}", main=main)
            client.BatchV1Api(api).create_namespaced_job("default", body)
            assert wait_until(lambda: bool(processes(seconds)), 60)
        finally:
            api.rest_client.pool_manager.clear()
            process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
    assert wait_until(lambda: not processes(seconds), 30)
    assert (tmp_path / "server" / "pods").exists() is (how == "killed")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2])
def test_it_may_be_stopped_while_pods_start(
    tmp_path: Path, busybox_root: Path, delay: float
) -> None:
    seconds = str(100_000_000 + secrets.randbelow(100_000_000))
    with Server(tmp_path / "server", parts.pull_busybox(busybox_root)) as server:
        for peer in connected(server, "default"):
            spec: dict[str, Any] = {"completionMode": "Indexed", "completions": 6, "parallelism": 6}
            main = {"securityContext": {"runAsUser": 1234}}
            body = parts.job("many", f"sleep {seconds}", main=main, **spec)
            peer.batch.create_namespaced_job("default", body)
        # Whatever the pods are doing by then: nothing is waited for.
        threading.Event().wait(delay)
    assert processes(seconds) == []
