"""A real registry that fails in the middle of a push or a pull: nothing is lost, the next one works."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.registry.cluster import Registries, Service
from tests.clusters.relay import Relay
from tests.samples import noise

from .users import User

pytestmark = pytest.mark.registry

MIDDLE = 2 << 20
"""Bytes: well in the first layer, which is tens of MiB."""


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


def is_there(service: Service, pushed: str) -> None:
    """What the push named is in the registry, with all its blobs, asked without our own code."""
    name, _, digest = pushed.strip().rpartition("@")
    repository = name.partition("/")[2]
    url = f"http://{service.address}/v2/{repository}"
    kind = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{url}/manifests/{digest}", headers=kind)) as answer:
        manifest = json.load(answer)
    for part in [manifest["config"], *manifest["layers"]]:
        asked = urllib.request.Request(f"{url}/blobs/{part['digest']}", method="HEAD")
        with opener.open(asked) as answer:
            assert int(answer.headers["Content-Length"]) == part["size"]


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
    is_there(faulty.open, pushed)
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
    is_there(faulty.open, pushed)


def test_connections_that_are_refused_for_a_while(faulty: Registries, author: User) -> None:
    with Relay(faulty.open.address) as relay:
        relay.refuse(3)
        pushed = author.cxc("push", "work.py:square", f"{relay.address}/team/runs").stdout
        assert relay.refused == 3
    is_there(faulty.open, pushed)


def test_a_token_expires_in_the_middle_of_a_push(faulty: Registries, author: User) -> None:
    with Relay(faulty.token.address) as relay:
        author.login(via(relay, faulty.token))
        expired = threading.Event()

        def expire() -> None:
            # Every token so far ends within this; those that follow are as good as they say.
            faulty.expire_tokens(None)
            time.sleep(LIFE + 1.5)
            expired.set()

        faulty.expire_tokens(LIFE)
        relay.at(MIDDLE, expire)
        pushed = author.cxc("push", "work.py:square", f"{relay.address}/team/runs").stdout
        assert expired.is_set()
        assert relay.failures == []
    requests = faulty.token.requests()
    assert sum(it.endswith(" 401") for it in requests) > 1, "no token was refused"
    is_there(faulty.token, pushed)


LIFE = 10
"""Seconds: enough to begin a push in, on a machine that has other work."""


def test_the_disk_is_full_in_the_middle_of_a_push(small: Registries, author: User) -> None:
    disk = small.storage("open")
    with Relay(small.open.address) as relay:
        relay.at(MIDDLE, disk.fill)
        name = f"{relay.address}/team/runs"
        failed = author.cxc("push", "work.py:square", name, code=1)
        assert (relay.waiting, relay.failures) == (0, [])
        said = failed.stderr.partition("error: ")[2]
        assert relay.address in said
        assert "500 Internal Server Error" in said
        assert "no space left on device" in said
        assert failed.stdout == ""
        assert author.remains() == []
        disk.free()
        pushed = author.cxc("push", "work.py:square", name).stdout
    is_there(small.open, pushed)


def test_storage_that_is_read_only(small: Registries, author: User, stranger: User) -> None:
    disk = small.storage("open")
    name = f"{small.open.address}/team/runs"
    first = author.cxc("push", "work.py:square", name).stdout.strip()
    disk.protect()
    author.write("def other(x):\n    return x\n")
    failed = author.cxc("push", "work.py:other", name, code=1)
    said = failed.stderr.partition("error: ")[2]
    assert small.open.address in said
    assert "read-only file system" in said
    assert author.remains() == []
    stranger.cxc("rerun", "--detach", "--trust", first)
    disk.protect(False)
    is_there(small.open, author.cxc("push", "work.py:other", name).stdout)


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
