"""What the tests on real registries share."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.credentials import Credential
from clustrix_containers.registry import Remote
from tests.clusters.registry.cluster import Service

MakeRemote = Callable[..., Remote]


@pytest.fixture
def repository() -> str:
    """A repository that no other test has used."""
    return f"team/run-{uuid.uuid4().hex}"


@pytest.fixture
def remote(tmp_path: Path) -> MakeRemote:
    """``remote(service, repository, …)`` with a presence cache of this test's own."""

    def make(service: Service, repository: str, **options: object) -> Remote:
        known = Credential(service.username, service.password, source="the test")
        settings: dict[str, object] = {
            "ca_file": service.ca_file,
            "credentials": lambda *_asked: known if service.username else None,
            "cache": tmp_path / "presence",
            **options,
        }
        return Remote(f"{service.address}/{repository}", **settings)  # type: ignore[arg-type]

    return make
