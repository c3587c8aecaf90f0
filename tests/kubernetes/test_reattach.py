"""A run outlives its client, wherever that was killed, and is found from another machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import UntrustedResultError
from clustrix_containers.runs.attach import attach, handle
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.faults.proxy import Proxy
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import ROOT, receiving
from tests.kubernetes.objects import core, jobs, until

pytestmark = pytest.mark.kubernetes

CLIENT = """
import sys
import clustrix_containers as cx
from tests.cases import work
print(list(cx.function(work.wait_for).map([1] * int(sys.argv[1]), on="k8s")))
"""

LARGE = """
import clustrix_containers as cx
from tests.cases import work
cx.function(work.big, memory="1GiB").submit(1 << 26, on="k8s").result()
"""


@pytest.fixture
def elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go to another machine: only clustrix.yml and the kubeconfig are there."""

    def go() -> None:
        monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(home / "other state"))
        monkeypatch.setenv("CLUSTRIX_DATA_DIR", str(home / "other data"))

    return go


def trusted(run: str) -> cx.Job | cx.JobArray:
    """The handle of a run whose results may be unpickled."""
    session = attach(run, on="k8s", watch=False)
    session.trust()
    session.watch()
    return handle(session)


def test_from_another_machine_a_value_is_there_once_it_is_trusted(
    on: str, elsewhere: Callable[[], None]
) -> None:
    first = cx.function(work.square).map([2, 3], on=on)
    elsewhere()
    found = cx.attach(first.run, on=on)
    with pytest.raises(UntrustedResultError, match="did not build"):
        found[0].result(60)
    assert list(trusted(first.run)) == [4, 9]


def test_from_another_machine_an_exception_has_its_type(
    on: str, elsewhere: Callable[[], None]
) -> None:
    run = cx.function(work.raises_chain).submit(on=on).run
    elsewhere()
    with pytest.raises(ValueError, match="chained"):
        trusted(run).result(60)


@pytest.mark.test_all
def test_from_another_machine_while_it_runs_and_the_first_client_still_waits(
    on: str, elsewhere: Callable[[], None]
) -> None:
    first = cx.function(work.wait_for).submit(3, on=on)
    elsewhere()
    assert trusted(first.run).result(60) == 3
    assert first.result(60) == 3


def test_a_run_that_nobody_knows(on: str) -> None:
    with pytest.raises(cx.errors.ClusterError, match=r"neither .* knows a run 'nobody-12345678'"):
        cx.attach("nobody-12345678", on=on)


class Client:
    """A process that submits and waits, to be killed at any moment; killed at the end of ``with``."""

    def __init__(self, home: Path, elements: int = 1, program: str = CLIENT) -> None:
        self.output = home / "client.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(elements)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=home,
            )

    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, condition: Callable[[], object]) -> None:
        """Until it is so, or the process has ended."""
        done = wait_until(lambda: self.over() or bool(condition()), 90)
        assert done, self.output.read_text()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def found_again(run: str, cluster: Kubernetes, namespace: str, elements: int = 1) -> None:
    """Nothing is lost, and nothing was made twice: this server has one Job for each element."""
    found = trusted(run)
    assert isinstance(found, cx.JobArray)
    assert list(found.results(120)) == [1] * elements
    assert len(jobs(cluster.access, namespace)) == elements


@pytest.mark.parametrize(
    "requests", [0, 3, *(pytest.param(n, marks=pytest.mark.test_all) for n in (1, 2, 4, 5, 6, 8))]
)
def test_killed_after_some_requests(
    requests: int,
    configure: Callable[..., None],
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
) -> None:
    own = own_kubernetes.configuration.write_kubeconfig(namespace, "system:masters")
    configure(kubeconfig=str(own))
    with Client(home, elements=3) as client:
        client.wait(lambda: open_record().runs())
        client.wait(lambda: len(own_kubernetes.requests(user=namespace)) >= requests)
    (run,) = open_record().runs()
    found_again(run.id, own_kubernetes, namespace, elements=3)


def test_an_array_that_was_half_made_is_completed_from_another_machine(
    proxy: Proxy,
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
    elsewhere: Callable[[], None],
) -> None:
    count = 12
    # Eight Jobs are made at a time; the others come three seconds after these are seen.
    proxy.delay(1.5)
    with Client(home, elements=count) as client:
        client.wait(lambda: jobs(own_kubernetes.access, namespace))
        proxy.refuse()
        proxy.cut()
    assert 0 < len(jobs(own_kubernetes.access, namespace)) < count
    (run,) = open_record().runs()
    proxy.heal()
    elsewhere()
    found = trusted(run.id)
    assert isinstance(found, cx.JobArray)
    assert list(found.results(180)) == [1] * count

    def succeeded() -> list[int | None]:
        return [job.status.succeeded for job in jobs(own_kubernetes.access, namespace)]

    # A pod's end is seen before its Job's status has it.
    until(lambda: succeeded() == [1] * count, 60, succeeded)
    with core(own_kubernetes.access) as api:
        owners = api.read_namespaced_secret(run.id, namespace).metadata.owner_references
    assert [it.name for it in owners] == [f"{run.id}-0-0", f"{run.id}-0-{count - 1}"]


def test_killed_while_it_takes_a_large_result(
    proxy: Proxy, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    proxy.limit(16 << 20)
    with Client(home, program=LARGE) as client:
        client.wait(lambda: open_record().runs())
        (run,) = open_record().runs()
        client.wait(lambda: receiving(run.id, home))
    proxy.limit(0)
    found = cx.attach(run.id)
    assert isinstance(found, cx.Job)
    assert found.result(120).nbytes == 1 << 26
    (job,) = jobs(own_kubernetes.access, namespace)
    assert not job.status.failed


@pytest.mark.test_all
@pytest.mark.parametrize("seed", range(50))
def test_killed_at_any_time(
    seed: int,
    on: str,
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
    elsewhere: Callable[[], None],
) -> None:
    elements = 1 + seed % 3
    with Client(home, elements) as client:
        client.wait(lambda: open_record().runs())
        time.sleep(random.Random(seed).uniform(0, 3))
    (run,) = open_record().runs()
    # Before there is a Job, only the record of this machine knows of the run.
    if seed % 2 and jobs(own_kubernetes.access, namespace):
        elsewhere()
    found_again(run.id, own_kubernetes, namespace, elements)
