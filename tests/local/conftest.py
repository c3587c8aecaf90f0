"""The local target on real containers: every way in which this machine can make one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.api.options import Resources
from clustrix_containers.api.status import State, Status
from clustrix_containers.clusters.local import LocalCluster
from clustrix_containers.clusters.task import Handle, Task
from clustrix_containers.results.directory import collect
from clustrix_containers.results.outcome import Expected, load
from tests.bare_worker import unpickle

from .images import Layout


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("layout") / "an 'image\" layöut")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "unpacked, 'imäges\""


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
    return value


@dataclass
class Bench:
    """Makes images and runs them; what is still running at the end is ended."""

    layout: Layout
    directory: Path
    cluster: LocalCluster
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    tag: str = field(default_factory=lambda: secrets.token_hex(4))
    """Ends the names of this test's runs: other tests run at the same time."""
    started: list[Sequence[Handle]] = field(default_factory=list)

    def task(
        self,
        code: str,
        calls: Sequence[tuple[Any, ...]] = ((),),
        *,
        name: str = "run",
        attempt: int = 0,
        max_parallel: int | None = None,
        image: str | None = None,
        options: Mapping[str, Any] | None = None,
        **resources: Any,
    ) -> Task:
        directory = self.directory / f"{name} 'of\" söme\nuser, #1"
        directory.mkdir(mode=0o700, exist_ok=True)
        key = directory / "key"
        if not key.exists():
            key.write_bytes(self.key)
        return Task(
            run=f"{name}-{self.tag}",
            name=name,
            image=image or self.layout.image(code, calls),
            elements=range(len(calls)),
            resources=Resources(**{"cpus": 0.5, **resources}),
            directory=directory,
            attempt=attempt,
            max_parallel=max_parallel,
            options=options or {},
        )

    def submit(self, task: Task) -> Sequence[Handle]:
        handles = self.cluster.submit(task)
        self.started.append(handles)
        return handles

    def wait(
        self, handles: Sequence[Handle], *states: State, seconds: float = 60.0
    ) -> list[Status]:
        """Until all are in one of these states (else: terminal)."""

        def done() -> bool:
            now = self.cluster.states(handles).values()
            return all(s.state in states if states else s.state.terminal for s in now)

        wait_for(done, seconds)
        return list(self.cluster.states(handles).values())

    def run(self, task: Task) -> list[Status]:
        return self.wait(self.submit(task))

    def value(self, task: Task, element: int = 0, status: Status | None = None) -> Any:
        outcome = collect(Expected(task.directory, task.run, element, task.attempt, self.key))
        assert outcome is not None, "no mark"
        return load(outcome, unpickle=unpickle, status=status)

    def output(self, handles: Sequence[Handle]) -> str:
        return b"".join(piece for _, piece in self.cluster.logs(handles[:1])).decode()

    def close(self) -> None:
        for handles in self.started:
            self.cluster.cancel(handles)
            self.wait(handles)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the machine for itself, and leaves the user's own state alone."""
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def bench(layout: Layout, cache: Path, tmp_path: Path) -> Any:
    cluster = LocalCluster(runtime="sandbox", cache=cache, grace=1.0)
    made = Bench(layout, tmp_path, cluster)
    yield made
    made.close()
