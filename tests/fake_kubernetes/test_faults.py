"""What a test can do to the fake cluster, and how that looks to a client."""

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
from kubernetes.client.exceptions import ApiException

from tests.clusters.daemon import wait_until
from tests.fake_kubernetes import FakeCluster, client
from tests.fake_kubernetes.client import Client


@pytest.mark.parametrize("code", [403, 429, 500, 503])
def test_an_error_for_some_requests(cluster: FakeCluster, fake: Client, code: int) -> None:
    cluster.faults.refuse("list", "pods", code, times=2, retry_after=1)
    for _ in range(2):
        with pytest.raises((ApiException, urllib3.exceptions.MaxRetryError)) as caught:
            fake.core.list_namespaced_pod("default")
        if isinstance(caught.value, ApiException):
            assert caught.value.status == code
            assert caught.value.headers["Retry-After"] == "1"
    fake.core.list_namespaced_pod("default")
    assert cluster.requests() == {("list", "pods", "test"): 3}


def test_a_reply_that_is_lost(cluster: FakeCluster, fake: Client) -> None:
    cluster.faults.lose_reply("create", "jobs")
    with pytest.raises(urllib3.exceptions.HTTPError):
        fake.start("true", name="mine")
    assert fake.finished("mine")["succeeded"] == 1


def test_a_request_that_never_arrives(cluster: FakeCluster, fake: Client) -> None:
    cluster.faults.cut("create", "jobs", times=2)
    with pytest.raises(urllib3.exceptions.HTTPError):
        fake.start("true", name="mine")
    with pytest.raises(ApiException, match="404"):
        fake.job("mine")
    cluster.faults.clear()
    fake.start("true", name="mine")


def watched(fake: Client, version: str, **options: Any) -> Any:
    """The answer of a watch, once it has begun."""
    return fake.core.list_namespaced_pod(
        "default",
        watch=True,
        resource_version=version,
        timeout_seconds=60,
        _preload_content=False,
        **options,
    )


def current(fake: Client) -> str:
    return str(fake.core.list_namespaced_pod("default").metadata.resource_version)


@pytest.mark.parametrize("how", ["expire", "close", "cut"])
def test_a_watch_that_ends(cluster: FakeCluster, fake: Client, how: str) -> None:
    version = current(fake)
    answer = watched(fake, version)
    getattr(cluster.faults, f"{how}_watches")()
    with answer:
        if how == "cut":
            with pytest.raises(urllib3.exceptions.HTTPError):
                list(answer)
        else:
            assert any(b'"code": 410' in it for it in answer) is (how == "expire")
    # A watch that resumes from before that gets 410 too.
    with watched(fake, version) as again:
        cluster.faults.close_watches()
        assert any(b'"code": 410' in it for it in again) is (how == "expire")


def test_bookmarks_say_where_to_go_on(fake: Client) -> None:
    version = current(fake)
    fake.core.create_namespaced_secret("default", {"metadata": {"name": "x"}})
    with watched(fake, version, allow_watch_bookmarks=True) as answer:
        line = next(iter(answer))
    assert b'"BOOKMARK"' in line and f'"resourceVersion": "{version}"'.encode() not in line


def test_finished_pods_are_collected(cluster: FakeCluster, fake: Client) -> None:
    job = fake.start("true")
    fake.finished(job)
    assert cluster.faults.collect_pods("default", job) == 1
    assert fake.pods(job) == []
    assert fake.job(job)["status"]["succeeded"] == 1


# -- processes

_PROGRAM = """
import signal, sys, time
# Who started the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from tests.fake_kubernetes import FakeCluster, client
directory = Path(sys.argv[1])
pull = client.pull_busybox(client.busybox_root(directory))
with FakeCluster(directory / "cluster", pull) as cluster:
    for api in client.connected(cluster):
        main = {"securityContext": {"runAsUser": 1234}}
        api.start("sleep " + sys.argv[2], main=main)
    time.sleep(600)
"""


def processes(word: str) -> list[int]:
    """Those that sleep for so long, below a shell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if word.encode() in words and b"-c" not in words:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_runs_on_when_its_process_ends(tmp_path: Path, how: signal.Signals) -> None:
    seconds = str(100_000_000 + secrets.randbelow(100_000_000))
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path), seconds]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            assert wait_until(lambda: bool(processes(seconds)), 60)
        finally:
            process.send_signal(how)
    assert wait_until(lambda: not processes(seconds), 30)
    assert (tmp_path / "cluster" / "pods").exists() is (how == signal.SIGKILL)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("delay", [0, 0.05, 0.2])
def test_it_may_end_while_pods_start(tmp_path: Path, busybox_root: Path, delay: float) -> None:
    seconds = str(100_000_000 + secrets.randbelow(100_000_000))
    with FakeCluster(tmp_path / "cluster", client.pull_busybox(busybox_root)) as cluster:
        for api in client.connected(cluster):
            spec: dict[str, Any] = {"completionMode": "Indexed", "completions": 6, "parallelism": 6}
            api.start(f"sleep {seconds}", main={"securityContext": {"runAsUser": 1234}}, **spec)
        # Whatever the pods are doing by then: nothing is waited for.
        threading.Event().wait(delay)
    assert processes(seconds) == []
