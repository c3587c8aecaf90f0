"""Arrays as one Indexed Job: on the played Kubernetes, since the real one here is too old."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import BatchV1Api, CoreV1Api

import clustrix_containers as cx
from clustrix_containers.clusters import staging
from clustrix_containers.clusters.kubernetes.manifest import selector
from clustrix_containers.errors import ResultLost, WorkerDied
from clustrix_containers.runs.attach import attach
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.access import connected
from tests.clusters.registry.cluster import Service
from tests.kubernetes_server import PullError, Server, Settings, Unpacked, unpacked

pytestmark = pytest.mark.registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused() -> threading.Event:
    """While it is set, no image can be pulled."""
    return threading.Event()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What is behind the claim ``results`` of every namespace."""
    directory = tmp_path / "volume"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


@pytest.fixture
def server(tmp_path: Path, home: Path, volume: Path, refused: threading.Event) -> Iterator[Server]:
    def pull(reference: str) -> Unpacked:
        if refused.is_set():
            raise PullError("pull access denied")
        image = staging.layout().image(reference.partition("@")[2])
        return unpacked(image, tmp_path / "unpacked")

    settings = Settings(claims={"results": volume})
    with Server(tmp_path / "server", pull, settings) as server:
        server.make_namespace("team")
        yield server


@pytest.fixture
def on(server: Server, registry_open: Service, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    target = {
        "type": "kubernetes",
        "kubeconfig": str(server.kubeconfig()),
        "namespace": "team",
        "registry": f"{registry_open.address}/indexed/runs",
        "pull_grace": 3,
    }
    config = home / "clustrix.yml"
    config.write_text(json.dumps({"targets": {"k8s": target}}))
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(config))
    return "k8s"


def asked(server: Server) -> Counter[tuple[str, str]]:
    """How often each verb was used on each resource by us."""
    found: Counter[tuple[str, str]] = Counter()
    for request, times in server.requests().items():
        found[request.verb, request.resource] += times
    return found


def test_an_array_is_one_job_and_a_handful_of_requests(on: str, server: Server) -> None:
    array = cx.function(work.square).map(range(30), on=on, max_parallel=4)
    assert list(array.results(200)) == [n * n for n in range(30)]
    seen = asked(server)
    made = {key: seen[key] for key in seen if key[0] in ("create", "patch")}
    assert made == {("create", "jobs"): 1, ("create", "secrets"): 1, ("patch", "jobs"): 1}
    assert seen["watch", "pods"] + seen["watch", "jobs"] == 2
    assert sum(seen.values()) < 12


def test_one_element_that_fails_is_tried_again_and_leaves_the_others(
    on: str, server: Server
) -> None:
    def fails(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number

    array = cx.function(fails, retries=1).map(range(3), on=on)
    assert array[0].result(120) == 0
    assert array[2].result(120) == 2
    with pytest.raises(ValueError, match="one"):
        array[1].result(120)
    assert len(pods(server, array.run)) == 4


def test_an_image_that_cannot_be_pulled_ends_the_whole_array_and_its_job(
    on: str, server: Server, refused: threading.Event
) -> None:
    refused.set()
    array = cx.function(work.square).map(range(30), on=on, max_parallel=2)
    assert "one Indexed Job" in array.how
    for job in array.as_completed(120):
        with pytest.raises(WorkerDied, match=r"image cannot be pulled: .*pull access denied"):
            job.result(0)
    assert wait_until(lambda: not jobs(server, array.run), 60)


def test_a_lost_reply_makes_no_second_job(on: str, server: Server) -> None:
    server.faults.lose_reply("create", "jobs")
    assert list(cx.function(work.square).map(range(3), on=on).results(120)) == [0, 1, 4]
    # Asked again, and told that it is there.
    assert asked(server)["create", "jobs"] == 2


def test_a_server_that_is_busy_is_asked_again(on: str, server: Server) -> None:
    server.faults.refuse("create", "jobs", 429, times=2, retry_after=1)
    server.faults.refuse("list", "pods", 500, times=2)
    assert cx.function(work.square).submit(3, on=on).result(120) == 9


def test_a_watch_that_is_too_old_lists_again(on: str, server: Server) -> None:
    job = cx.function(work.wait_for).submit(3, on=on)
    assert wait_until(lambda: asked(server)["watch", "pods"] > 0, 60)
    server.faults.expire_watches()
    assert job.result(120) == 3
    assert asked(server)["list", "pods"] >= 2


def test_an_evicted_element_runs_again_and_is_not_charged(on: str, server: Server) -> None:
    job = cx.function(work.wait_for).submit(5, on=on)
    assert wait_until(job.running, 60)
    server.faults.evict("team", pods(server, job.run)[0])
    assert job.result(120) == 5
    assert len(pods(server, job.run)) == 2


def test_a_server_that_has_just_started_and_denies_all_is_asked_again(
    on: str, server: Server
) -> None:
    def denied(verb: str, resource: str) -> None:
        words = f'{resource} is forbidden: User "me" cannot {verb} resource "{resource}" in API group ""'
        server.faults.refuse(verb, resource, 403, times=3, message=words)

    job = cx.function(work.big).submit(1 << 20, on=on)
    assert wait_until(lambda: asked(server)["watch", "pods"] > 0, 60)
    denied("get", "pods/exec")
    for resource in ("pods", "jobs"):
        for verb in ("list", "watch"):
            denied(verb, resource)
    server.faults.close_watches(abruptly=True)
    assert job.result(120).nbytes == 1 << 20
    assert asked(server)["get", "pods/exec"] > 3


@pytest.mark.parametrize("step", [("create", "secrets"), ("patch", "jobs")])
def test_a_run_whose_client_was_killed_while_it_submitted_is_completed_elsewhere(
    on: str, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str]
) -> None:
    server.faults.cut(*step, times=10_000)
    words = ("run", "--on", on, "tests/cases/work.py:square", "3")
    with subprocess.Popen(
        [sys.executable, "-m", "clustrix_containers", *words], cwd=ROOT
    ) as client:
        assert wait_until(lambda: asked(server)[step] > 0 or client.poll() is not None, 60)
        client.kill()
    server.faults.calm()
    (run,) = open_record().runs()
    mine = os.environ["CLUSTRIX_STATE_DIR"]
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(home / "elsewhere"))
    session = attach(run.id, on=on, watch=False)
    session.trust()
    session.watch()
    assert session.jobs[0].result(60) == 9
    # Whoever submitted it has another key, and takes that of the pods.
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", mine)
    assert cx.attach(run.id).result(60) == 9
    assert len(jobs(server, run.id)) == 1


def test_a_success_whose_pod_was_collected_is_lost(on: str, server: Server) -> None:
    words = ("run", "--on", on, "--detach", "tests/cases/work.py:square", "3")
    done = subprocess.run(
        [sys.executable, "-m", "clustrix_containers", *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    run = done.stdout.strip()

    def complete() -> bool:
        status = jobs(server, run)[0]["status"]
        return any(it["type"] == "Complete" for it in status.get("conditions", ()))

    assert wait_until(complete, 60)
    assert server.faults.collect_pods("team", jobs(server, run)[0]["metadata"]["name"]) == 1
    with pytest.raises(ResultLost, match="its result is not there"):
        cx.attach(run).result(60)


def test_large_results_of_an_array_on_a_volume_are_read_by_one_pod(
    on: str, server: Server, home: Path, volume: Path
) -> None:
    config = json.loads((home / "clustrix.yml").read_text())
    config["targets"][on]["results"] = {"volume": {"claim": "results", "path": "runs"}}
    (home / "clustrix.yml").write_text(json.dumps(config))
    claim = {
        "metadata": {"name": "results"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    with connected(server.kubeconfig()) as client:
        CoreV1Api(client).create_namespaced_persistent_volume_claim("team", claim)
    array = cx.function(work.big).map([1 << 18] * 12, on=on)
    assert [len(value) for value in array.results(200)] == [1 << 15] * 12
    assert len(list((volume / "runs" / array.run).glob("*.mark"))) == 12
    # The run's own, and the one that reads; another if that had nothing to do for long.
    assert asked(server)["create", "jobs"] in (2, 3)


def pods(server: Server, run: str) -> list[str]:
    """The pods of a run, by name."""
    with connected(server.kubeconfig()) as client:
        listed = CoreV1Api(client).list_namespaced_pod("team", label_selector=selector(run))
        return [it.metadata.name for it in listed.items]


def jobs(server: Server, run: str) -> list[Any]:
    with connected(server.kubeconfig()) as client:
        listed = BatchV1Api(client).list_namespaced_job("team", label_selector=selector(run))
        return [client.sanitize_for_serialization(it) for it in listed.items]
