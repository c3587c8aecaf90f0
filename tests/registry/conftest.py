"""What the tests on real registries share."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.registry import Remote
from tests.clusters.registry.cluster import Service

from .users import ROOT, User

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


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    """A cache for all tests: what is in it is found by content, so it may stay."""
    directory = ROOT / ".cache" / "tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def author(tmp_path: Path, shared_cache: Path) -> User:
    """A user with a function."""
    return User(tmp_path / "author", shared_cache).settle()


@pytest.fixture
def stranger(tmp_path: Path) -> User:
    """Another user, who has nothing at all."""
    return User(tmp_path / "stranger", tmp_path / "stranger" / "cache").settle()
