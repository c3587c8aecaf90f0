"""An API server that is down, slow, restarts or refuses; and how many requests it gets."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import ClusterError
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import receiving
from tests.kubernetes.objects import jobs, until

pytestmark = pytest.mark.kubernetes

Configure = Callable[..., None]


def restart(cluster: Kubernetes, signal: str = "KILL") -> None:
    cluster.api_server.stop(signal)
    cluster.api_server.start()
    cluster.api_server.wait()


def test_down_while_submitting_is_waited_for(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    known(on)
    own_kubernetes.api_server.stop("KILL")
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(cx.function(work.square).submit, 5, on=on)
        until(lambda: len(open_record().runs()) == 2, 60, lambda: submitted)
        own_kubernetes.api_server.start()
        assert submitted.result(90).result(90) == 25
    assert len(jobs(own_kubernetes.access, namespace)) == 2


def known(on: str) -> None:
    """What the server can do is queried before anything is built or recorded: by this run."""
    assert cx.function(work.square).submit(1, on=on).result(90) == 1


@pytest.mark.test_all
def test_down_for_long_is_an_error_and_the_run_can_be_found_later(
    on: str, own_kubernetes: Kubernetes, namespace: str
) -> None:
    known(on)
    own_kubernetes.api_server.stop("KILL")
    with pytest.raises(ClusterError, match=r"no response.*refused"):
        cx.function(work.square).submit(6, on=on)
    own_kubernetes.api_server.start()
    own_kubernetes.api_server.wait()
    (run,) = (it for it in open_record().runs() if not it.handles)
    assert cx.attach(run.id).result(90) == 36
    assert len(jobs(own_kubernetes.access, namespace)) == 2


@pytest.mark.test_all
def test_a_restart_in_mid_run(on: str, own_kubernetes: Kubernetes) -> None:
    job = cx.function(work.wait_for).submit(4, on=on)
    until(job.running, 60, lambda: job.status)
    restart(own_kubernetes)
    assert job.result(90) == 4


def test_a_restart_while_a_large_result_is_taken(
    on: str, own_kubernetes: Kubernetes, home: Path
) -> None:
    job = cx.function(work.big, memory="1GiB").submit(size := 1 << 26, on=on)
    until(lambda: receiving(job.run, home), 90, lambda: job.status)
    restart(own_kubernetes)
    assert job.result(120).nbytes == size


@pytest.mark.test_all
def test_a_power_cut_of_its_machine_that_ends_no_connection(
    on: str, own_kubernetes: Kubernetes
) -> None:
    job = cx.function(work.wait_for).submit(5, on=on)
    until(job.running, 60, lambda: job.status)
    # So this side gets no FIN or RST for its watches.
    own_kubernetes.control.cut()
    own_kubernetes.control.kill()
    own_kubernetes.up()
    assert job.result(120) == 5


@pytest.mark.test_all
def test_a_pause_of_some_seconds(on: str, own_kubernetes: Kubernetes) -> None:
    job = cx.function(work.wait_for).submit(2, on=on)
    until(job.running, 60, lambda: job.status)
    own_kubernetes.control.pause()
    # The pod ends meanwhile; no event can arrive.
    time.sleep(5)
    own_kubernetes.control.resume()
    assert job.result(90) == 2


@pytest.mark.parametrize("signal", ["KILL", pytest.param("TERM", marks=pytest.mark.test_all)])
def test_no_line_of_a_log_is_lost_or_twice_over_a_restart(
    on: str, own_kubernetes: Kubernetes, signal: str
) -> None:
    count = 60
    job = cx.function(work.counts_aloud).submit(count, 0.1, on=on)
    lines = job.logs(follow=True)
    seen = [next(lines) for _ in range(5)]
    restart(own_kubernetes, signal)
    seen += lines
    assert seen == [*(f"line {i} – ünïcode\n" for i in range(count)), "to stderr\n"]
    assert job.result(60) == count


# -- what it refuses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kubeconfig": "/nonexistent/config"}, "no such kubeconfig: /nonexistent/config"),
        ({"context": "nowhere"}, "nowhere"),
        ({"namespace": "not-there"}, 'namespaces "not-there" not found'),
    ],
)
def test_a_missing_kubeconfig_context_or_namespace_is_named(
    configure: Configure, options: dict[str, str], words: str
) -> None:
    configure(**options)
    with pytest.raises(ClusterError, match=words):
        cx.function(work.square).submit(2, on="k8s")


def test_an_expired_certificate(configure: Configure, own_kubernetes: Kubernetes) -> None:
    late = own_kubernetes.configuration.write_kubeconfig("late", "system:masters", days=-1)
    configure(kubeconfig=str(late))
    with pytest.raises(ClusterError, match="expired"):
        cx.function(work.square).submit(2, on="k8s")


# -- how many requests it gets


@pytest.fixture
def requests_made(
    configure: Configure, own_kubernetes: Kubernetes, namespace: str
) -> Iterator[Callable[[], Counter[str]]]:
    """How often each request was made by this test, which has a user of its own."""
    own = own_kubernetes.configuration.write_kubeconfig(namespace, "system:masters")
    configure(kubeconfig=str(own))
    since = datetime.datetime.now(datetime.timezone.utc)
    yield lambda: Counter(map(str, own_kubernetes.requests(user=namespace, since=since)))
    own.unlink()


def test_one_call_is_a_handful_of_requests(requests_made: Callable[[], Counter[str]]) -> None:
    assert cx.function(work.square).submit(3, on="k8s").result(60) == 9
    found = requests_made()
    watching = {"list jobs 200", "list pods 200", "watch jobs 200", "watch pods 200"}
    # Listed now and then while a Job has no pods: this cluster may be slow to create them.
    watching.add("list events 200")
    made = {name: count for name, count in found.items() if name not in watching}
    assert made == {
        "get /version/ 200": 1,
        "create secrets 201": 1,
        "create jobs 201": 1,
        "patch secrets 200": 1,
    }
    # One that stays open may not be in the log before it ends.
    assert max(found["watch jobs 200"], found["watch pods 200"]) <= 1, found
    assert found["list jobs 200"] == 1
    # The watches are not in step: a Job that is complete is compared with its pods once more.
    assert found["list pods 200"] <= 3


def test_many_jobs_share_one_watch(requests_made: Callable[[], Counter[str]]) -> None:
    square = cx.function(work.square)
    arrays = [square.map(range(5), on="k8s") for _ in range(2)]
    assert [list(array) for array in arrays] == [[x * x for x in range(5)]] * 2
    found = requests_made()
    assert found["get /version/ 200"] == 1
    # One that stays open may not be in the log before it ends.
    assert max(found["watch jobs 200"], found["watch pods 200"]) <= 1, found
    assert (found["create jobs 201"], found["create secrets 201"]) == (10, 2)
    assert found["list jobs 200"] == 1
    assert found["list pods 200"] < 10, found
