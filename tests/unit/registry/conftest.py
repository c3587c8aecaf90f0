"""A registry that goes wrong on demand, and a Remote that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustrix_containers.registry import Remote
from clustrix_containers.registry.retry import Retry
from tests.faults import FaultServer

FAST = Retry(attempts=4, first=0.001, most=0.005, patience=2.0)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., Remote]:
    """``connect(server, repository="team/runs", …)``: a Remote without credentials."""

    def make(server: FaultServer, repository: str = "team/runs", **options: object) -> Remote:
        settings: dict[str, object] = {
            "credentials": lambda *_asked: None,
            "cache": tmp_path / "presence",
            "retry": FAST,
            **options,
        }
        return Remote(f"{server.address}/{repository}", **settings)  # type: ignore[arg-type]

    return make
