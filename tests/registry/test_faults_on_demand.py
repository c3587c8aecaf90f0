"""A real registry that fails in the middle of a push or a pull: nothing is lost, the next one works."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.registry.cluster import Registries, Service
from tests.clusters.relay import Relay

from .users import User

pytestmark = pytest.mark.registry

MIDDLE = 2 << 20
"""Bytes: well in the first layer, which is tens of MiB."""
LIFE = 10
"""Seconds: enough to begin a push in, on a machine that has other work."""


def registries(disk: int) -> Iterator[Registries]:
    own = Registries(Path(tempfile.mkdtemp(prefix="cx faults ' ")), with_parent=True, disk=disk)
    try:
        own.up()
        yield own
    except StartError as error:
        pytest.fail(str(error))
    finally:
        own.down()


@pytest.fixture
def faulty() -> Iterator[Registries]:
    """Registries of this test's own, to stop and start."""
    yield from registries(0)


@pytest.fixture
def small() -> Iterator[Registries]:
    """Registries with 256 MiB of storage each."""
    yield from registries(256)


def via(relay: Relay, service: Service) -> Service:
    return replace(service, address=relay.address)


def is_there(registries: Registries, name: str, pushed: str) -> None:
    """What the push named is in that registry's storage, whole."""
    where = registries.stored(name)
    _, _, digest = pushed.strip().rpartition("@")
    manifest = json.loads(blob(where, digest))
    for part in [manifest["config"], *manifest["layers"]]:
        assert len(blob(where, part["digest"])) == part["size"]
    links = where / "repositories/team/runs"
    algorithm, _, number = digest.partition(":")
    assert (links / "_manifests/revisions" / algorithm / number / "link").exists()


def blob(where: Path, digest: str) -> bytes:
    algorithm, _, number = digest.partition(":")
    data = (where / "blobs" / algorithm / number[:2] / number / "data").read_bytes()
    assert hashlib.sha256(data).hexdigest() == number
    return data


@pytest.mark.parametrize("kill", [False, True], ids=["ends", "is killed"])
def test_the_registry_restarts_in_the_middle_of_a_push(
    kill: bool, faulty: Registries, author: User
) -> None:
    address = faulty.open.address

    def restart() -> None:
        faulty.stop("open", kill=kill)
        faulty.start("open")

    with Relay(address) as relay:
        relay.at(MIDDLE, restart)
        pushed = author.cxc("push", "work.py:square", f"{relay.address}/team/runs").stdout
        assert (relay.waiting, relay.failures) == (0, [])
    assert faulty.open.address == address
    is_there(faulty, "open", pushed)
    assert author.remains() == []


def test_the_registry_stays_down_in_the_middle_of_a_push_and_the_next_one_goes_on(
    faulty: Registries, author: User
) -> None:
    with Relay(faulty.open.address) as relay:
        relay.at(MIDDLE, lambda: faulty.stop("open", kill=True))
        name = f"{relay.address}/team/runs"
        failed = author.cxc("push", "work.py:square", name, code=1)
        assert failed.stderr.count("error: ") == 1
        assert relay.address in failed.stderr.partition("error: ")[2]
        assert failed.stdout == ""
        assert author.remains() == []
        faulty.start("open")
        pushed = author.cxc("push", "work.py:square", name).stdout
        assert (relay.waiting, relay.failures) == (0, [])
    is_there(faulty, "open", pushed)


def test_connections_that_are_refused_for_a_while(faulty: Registries, author: User) -> None:
    with Relay(faulty.open.address) as relay:
        relay.refuse(3)
        pushed = author.cxc("push", "work.py:square", f"{relay.address}/team/runs").stdout
        assert relay.refused == 3
    is_there(faulty, "open", pushed)


def test_a_token_expires_in_the_middle_of_a_push(faulty: Registries, author: User) -> None:
    def refusals() -> int:
        return sum(it.endswith(" 401") for it in faulty.token.requests())

    with Relay(faulty.token.address) as relay:
        author.login(via(relay, faulty.token))
        before: list[int] = []

        def expire() -> None:
            # Every token so far ends within this; those that follow are as good as they say.
            faulty.expire_tokens(None)
            time.sleep(LIFE + 1.5)
            before.append(refusals())

        faulty.expire_tokens(LIFE)
        relay.at(MIDDLE, expire)
        pushed = author.cxc("push", "work.py:square", f"{relay.address}/team/runs").stdout
        assert (relay.waiting, relay.failures) == (0, [])
    assert refusals() > before[0], "no token was refused"
    is_there(faulty, "token", pushed)


def test_the_disk_is_full_in_the_middle_of_a_push(small: Registries, author: User) -> None:
    disk = small.storage("open")
    with Relay(small.open.address) as relay:
        relay.at(MIDDLE, disk.fill)
        name = f"{relay.address}/team/runs"
        failed = author.cxc("push", "work.py:square", name, code=1)
        assert (relay.waiting, relay.failures) == (0, [])
        message = failed.stderr.partition("error: ")[2]
        assert relay.address in message
        assert "500 Internal Server Error" in message
        assert "no space left on device" in message.lower()
        assert failed.stdout == ""
        assert author.remains() == []
        disk.free()
        pushed = author.cxc("push", "work.py:square", name).stdout
    is_there(small, "open", pushed)


def test_storage_that_is_read_only(small: Registries, author: User, stranger: User) -> None:
    disk = small.storage("open")
    name = f"{small.open.address}/team/runs"
    first = author.cxc("push", "work.py:square", name).stdout.strip()
    disk.protect()
    author.write("def other(x):\n    return x\n")
    failed = author.cxc("push", "work.py:other", name, code=1)
    message = failed.stderr.partition("error: ")[2]
    assert small.open.address in message
    assert "read-only file system" in message.lower()
    assert author.remains() == []
    stranger.cxc("rerun", "--detach", "--trust", first)
    disk.protect(False)
    is_there(small, "open", author.cxc("push", "work.py:other", name).stdout)


def test_the_registry_restarts_in_the_middle_of_a_pull(
    faulty: Registries, author: User, stranger: User
) -> None:
    pushed = author.cxc("push", "work.py:square", f"{faulty.open.address}/team/runs").stdout
    digest = pushed.strip().rpartition("@")[2]
    with Relay(faulty.open.address) as relay:

        def restart() -> None:
            faulty.stop("open", kill=True)
            faulty.start("open")

        relay.at_received(MIDDLE, restart)
        stranger.cxc("rerun", "--detach", "--trust", f"{relay.address}/team/runs@{digest}")
        assert (relay.waiting, relay.failures) == (0, [])
    assert stranger.remains() != [], "the run was submitted"
