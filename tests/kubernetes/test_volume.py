"""Large results on a volume claim: written by pods, read by a pod of ours or where it is mounted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import ClusterError, ResultLost
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import ROOT
from tests.kubernetes.objects import batch, core, jobs, pods, until
from tests.kubernetes.test_access import applied, as_user, cxc

pytestmark = pytest.mark.kubernetes

PATH = "sub dir/a 'b\" ü"
LARGE = 1 << 20
SUBMIT = """
import os, sys
import clustrix_containers as cx
from tests.cases import work
size = int(sys.argv[1])
run = cx.function(work.big, memory=(256 << 20) + 2 * size).submit(size, on="k8s").run
print(run, flush=True)
os._exit(0)
"""

TAKE = """
import sys
import clustrix_containers as cx
value = cx.attach(sys.argv[1]).result(250)
print(len(value), value[-1])
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) >> 10)
"""


@pytest.fixture
def volume(own_kubernetes: Kubernetes, namespace: str) -> Path:
    """The root of the volume of the claim ``results``, as this machine sees it."""
    own_kubernetes.make_claim(namespace, "results")
    return own_kubernetes.directory / "shared" / f"{namespace}-results"


@pytest.fixture
def on(configure: Callable[..., None], volume: Path) -> str:
    """The target, with the claim and no mount of it."""
    configure(results={"volume": {"claim": "results", "path": PATH}})
    return "k8s"


def big(**options: Any) -> Any:
    return cx.function(work.big, memory="256MiB", **options)


def readers(cluster: Kubernetes, namespace: str) -> list[str]:
    found = [job.metadata.name for job in jobs(cluster.access, namespace)]
    return [name for name in found if "-reads-" in name]


def deleted(cluster: Kubernetes, namespace: str, run: str) -> None:
    """Delete a run's Job and its pods; nothing of them is there then."""
    with batch(cluster.access) as api:
        api.delete_namespaced_job(f"{run}-0", namespace, propagation_policy="Background")
    with core(cluster.access) as api:
        # Sooner than the cluster would.
        api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)
    until(lambda: not pods(cluster.access, namespace), 90, lambda: pods(cluster.access, namespace))


def files(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir())


def submitted_elsewhere(home: Path, size: int = LARGE) -> str:
    """The id of a run of a process that has ended since."""
    return process(home, SUBMIT, size)


def process(home: Path, program: str, *arguments: object) -> str:
    """What a Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_large_results_are_read_by_one_pod_that_goes_again(
    on: str, own_kubernetes: Kubernetes, namespace: str, volume: Path
) -> None:
    array = big().map([8, *[LARGE] * 5], on=on)
    assert [len(value) for value in array.results(200)] == [1, *[LARGE // 8] * 5]
    assert len(readers(own_kubernetes, namespace)) <= 1
    assert files(volume / PATH / array.run) == [".mark"] * 5 + [".result"] * 5
    until(lambda: not readers(own_kubernetes, namespace), 60, lambda: list(array))


def test_who_deletes_the_pod_that_reads_gets_another_one(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    array = cx.function(work.random_bytes).map([0, 8], [LARGE] * 2, on=on)
    assert len(array[0].result(120)) == LARGE
    first = readers(own_kubernetes, namespace)
    with batch(own_kubernetes.access) as api:
        for name in first:
            api.delete_namespaced_job(name, namespace, propagation_policy="Background")
    assert len(array[1].result(120)) == LARGE
    assert not set(first) & set(readers(own_kubernetes, namespace))


@pytest.mark.test_all
@pytest.mark.timeout(600)
def test_the_pod_that_reads_ends_by_itself_when_its_client_is_killed(
    on: str, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    run = submitted_elsewhere(home)
    stays = f"{TAKE}print('taken', flush=True)\nimport time\ntime.sleep(1000)\n"
    with subprocess.Popen(
        [sys.executable, "-c", stays, run],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=home,
        text=True,
    ) as client:
        assert client.stdout is not None
        try:
            assert any(line == "taken\n" for line in client.stdout)
        finally:
            client.kill()
    assert len(readers(own_kubernetes, namespace)) == 1
    until(
        lambda: not readers(own_kubernetes, namespace),
        400,
        lambda: pods(own_kubernetes.access, namespace),
    )


def test_a_result_outlives_its_job_and_the_client(
    on: str, own_kubernetes: Kubernetes, namespace: str, home: Path, volume: Path
) -> None:
    run = submitted_elsewhere(home)

    def done() -> bool:
        return any(job.status.succeeded for job in jobs(own_kubernetes.access, namespace))

    until(done, 120, lambda: pods(own_kubernetes.access, namespace))
    deleted(own_kubernetes, namespace, run)
    assert len(cx.attach(run).result(120)) == LARGE // 8
    # It has come: who asks again needs neither the claim nor a pod.
    for path in (volume / PATH / run).iterdir():
        path.unlink()
    assert len(cx.attach(run).result(120)) == LARGE // 8


def test_where_the_volume_is_mounted_here_no_pod_reads(
    configure: Callable[..., None], own_kubernetes: Kubernetes, namespace: str, volume: Path
) -> None:
    configure(results={"volume": {"claim": "results", "mount": str(volume)}}, user="any")
    assert len(big().submit(LARGE, on="k8s").result(120)) == LARGE // 8
    assert len(jobs(own_kubernetes.access, namespace)) == 1


def test_a_pod_that_runs_is_not_one_that_holds_a_result(on: str) -> None:
    job = cx.function(work.wait_for).submit(4, on=on)
    until(job.running, 60, lambda: job.status)
    assert job.result(60) == 4


def test_two_pods_of_one_element(
    configure: Callable[..., None],
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
    volume: Path,
) -> None:
    configure(results={"volume": {"claim": "results", "mount": str(volume)}})
    run = submitted_elsewhere(home)
    (job,) = jobs(own_kubernetes.access, namespace)
    with core(own_kubernetes.access) as api:
        twin = api.api_client.sanitize_for_serialization(job.spec.template)
        # The Job's controller would take one with its own labels for one too many, and delete it.
        labels = {
            name: value
            for name, value in job.spec.template.metadata.labels.items()
            if name not in ("controller-uid", "job-name")
        }
        twin["metadata"] = {"name": "twin", "labels": labels}
        api.create_namespaced_pod(namespace, twin)
    place = volume / run
    until(
        lambda: place.exists() and files(place) == [".mark", ".mark", ".result"],
        120,
        lambda: [pod.status for pod in pods(own_kubernetes.access, namespace)],
    )
    assert len(cx.attach(run).result(120)) == LARGE // 8


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(256 << 20, id="256 MiB"),
        pytest.param(1 << 30, id="1 GiB", marks=pytest.mark.test_all),
    ],
)
def test_a_very_large_result_takes_no_memory(
    on: str, size: int, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    run = submitted_elsewhere(home, size)
    count, last, peak = process(home, TAKE, run).split()
    assert (int(count), int(last)) == (size // 8, size // 8 - 1)
    assert int(peak) < 200
    # The process that it served has deleted it as it ended.
    assert readers(own_kubernetes, namespace) == []


def test_the_role_is_enough(
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    volume: Path,
) -> None:
    applied(own_kubernetes, namespace, home)
    as_user(own_kubernetes, namespace, home, monkeypatch, "clustrix-users")
    config = json.loads((home / "clustrix.yml").read_text())
    config["targets"]["k8s"]["results"] = {"volume": {"claim": "results"}}
    (home / "clustrix.yml").write_text(json.dumps(config))
    printed = cxc(home, "doctor")
    assert "ok   k8s: volume claim: results is Bound, ReadWriteMany" in printed
    assert "persistentvolumeclaims: get" in printed
    assert "NOT" not in printed
    assert len(big().submit(LARGE).result(120)) == LARGE // 8


# -- what is not as it should be


def test_a_claim_that_the_pods_user_may_not_write_to(on: str, volume: Path) -> None:
    volume.chmod(0o755)
    with pytest.raises(ResultLost, match="results cannot be written to by uid 65532, gid 65532"):
        big().submit(LARGE, on=on).result(120)
    assert big().submit(8, on=on).result(120)[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"claim": "nowhere"}, "the volume claim nowhere in {namespace} does not exist"),
        ({"claim": "results", "mount": "/no/such"}, "mount /no/such: no such directory"),
    ],
)
def test_a_missing_claim_or_mount_is_an_error_before_anything_is_submitted(
    configure: Callable[..., None],
    own_kubernetes: Kubernetes,
    namespace: str,
    volume: Path,
    home: Path,
    options: dict[str, str],
    words: str,
) -> None:
    configure(results={"volume": options})
    words = words.format(namespace=namespace)
    with pytest.raises(ClusterError, match=words):
        big().submit(LARGE, on="k8s")
    assert jobs(own_kubernetes.access, namespace) == []
    assert "NOT  k8s: volume claim: " in (printed := cxc(home, "doctor", "--on", "k8s", code=1))
    assert words in printed


def test_what_somebody_has_deleted_is_lost(
    on: str, own_kubernetes: Kubernetes, namespace: str, home: Path, volume: Path
) -> None:
    run = submitted_elsewhere(home)
    place = volume / PATH / run
    until(lambda: place.exists() and len(files(place)) == 2, 120, lambda: open_record().run(run))
    deleted(own_kubernetes, namespace, run)
    for path in place.iterdir():
        path.unlink()
    with pytest.raises(cx.errors.JobError, match="its Job was deleted"):
        cx.attach(run).result(120)
