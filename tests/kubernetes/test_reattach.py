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
from clustrix_containers import runs
from clustrix_containers.errors import UntrustedResultError
from clustrix_containers.runs import record
from tests.cases import work
from tests.clusters.daemon import wait_until
from tests.clusters.kubernetes.cluster import Kubernetes
from tests.kubernetes.conftest import ROOT
from tests.kubernetes.objects import jobs

pytestmark = pytest.mark.kubernetes

CLIENT = """
import sys
import clustrix_containers as cx
from tests.cases import work
print(cx.function(work.wait_for).submit(float(sys.argv[1]), on="k8s").result(120))
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
    session = runs.attach(run, on="k8s", watch=False)
    session.trust()
    session.watch()
    return runs.handle(session)


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
    """A process that submits and waits, to be killed at any moment."""

    def __init__(self, home: Path) -> None:
        self.output = home / "client.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CLIENT, "1"],
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

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def found_again(run: str, cluster: Kubernetes, namespace: str) -> None:
    assert cx.attach(run).result(90) == 1
    assert len(jobs(cluster.access, namespace)) == 1


@pytest.mark.parametrize("requests", [0, 1, 2, 4, 8])
def test_killed_after_some_requests(
    requests: int,
    configure: Callable[..., None],
    own_kubernetes: Kubernetes,
    namespace: str,
    home: Path,
) -> None:
    own = own_kubernetes.configuration.write_kubeconfig(namespace, "system:masters")
    configure(kubeconfig=str(own))
    client = Client(home)
    client.wait(lambda: record().runs())
    client.wait(lambda: len(own_kubernetes.requests(user=namespace)) >= requests)
    client.kill()
    (run,) = record().runs()
    found_again(run.id, own_kubernetes, namespace)


@pytest.mark.test_all
@pytest.mark.parametrize("seed", range(50))
def test_killed_at_any_time(
    seed: int, on: str, own_kubernetes: Kubernetes, namespace: str, home: Path
) -> None:
    client = Client(home)
    client.wait(lambda: record().runs())
    time.sleep(random.Random(seed).uniform(0, 3))
    client.kill()
    (run,) = record().runs()
    found_again(run.id, own_kubernetes, namespace)
