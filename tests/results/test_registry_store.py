"""Results through a registry: the client lends a token, the worker pushes, the client takes."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.errors import ClusterError, RegistryError, ResultLost
from clustrix_containers.oci.model import Descriptor
from clustrix_containers.registry import Remote
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.stores import registry as store
from clustrix_containers.results.stores.registry import RegistryStore
from tests.bare_worker import RUN, interpreters
from tests.clusters.registry.cluster import Service
from tests.delivered import Delivering
from tests.front import Front, answer, hang_up

IMAGE = "registry.example.org/a@sha256:" + "0" * 64
LARGE = "import os\ndef f(): return os.urandom(3_000_000)"
SUBJECT = Descriptor("application/vnd.oci.image.manifest.v1+json", "sha256:" + "5" * 64, 500)


def remote(service: Service, tmp_path: Path, name: str = "team/runs") -> Remote:
    def lookup(_registry: str, _repository: str) -> Credential | None:
        if not service.username:
            return None
        return Credential(service.username, service.password, source="the test")

    return Remote(
        f"{service.address}/{name}",
        ca_file=service.ca_file,
        credentials=lookup,
        cache=tmp_path / "cache",
    )


@pytest.fixture
def pod(tmp_path: Path) -> Delivering:
    return Delivering.of(tmp_path / "p", sys.executable, LARGE)


def stored(pod: Delivering) -> Stored:
    parsed = pod.parsed_message()
    assert isinstance(parsed, Stored), parsed
    return parsed


def fetch(where: Remote, pod: Delivering, parsed: Stored | None) -> bool:
    return store.fetch(where, pod.expected(), parsed)


@pytest.mark.parametrize("python", interpreters())
def test_a_result_goes_through_an_open_registry(
    tmp_path: Path, python: str, registry_open: Service, request: pytest.FixtureRequest
) -> None:
    where = remote(registry_open, tmp_path, f"team/p{interpreters().index(python)}")
    pod = Delivering.of(tmp_path / "p", python, LARGE)
    opened = store.open_store(where, RUN, SUBJECT, seconds=10**9)
    assert opened["token"] is None
    assert not fetch(where, pod, None)
    pod.configured(json.loads(json.dumps(opened)))
    assert pod.bare.run() == (0, "", "")
    assert fetch(where, pod, stored(pod))
    assert len(pod.value()) == 3_000_000


def test_a_result_goes_through_a_registry_with_tokens(
    tmp_path: Path, pod: Delivering, registry_token: Service
) -> None:
    where = remote(registry_token, tmp_path, "team/tokens")
    opened = store.open_store(where, RUN, SUBJECT, seconds=200)
    assert registry_token.password not in json.dumps(opened)
    pod.configured(opened)
    assert pod.bare.run() == (0, "", "")
    assert fetch(where, pod, None)
    assert fetch(where, pod, stored(pod))
    assert len(pod.value()) == 3_000_000
    manifest = json.loads(where.manifest(str(stored(pod).manifest)))
    assert manifest["subject"] == SUBJECT.to_json()


def test_one_client_and_one_token_for_all_elements(
    tmp_path: Path, pod: Delivering, registry_token: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 12
    name = "team/shared"
    pod.configured(
        store.open_store(remote(registry_token, tmp_path, name), RUN, SUBJECT, seconds=200)
    )
    for element in range(count):
        assert pod.bare.run(element) == (0, "", "")
    with Front(registry_token.address) as front:
        login = encoded(f"{registry_token.username}:{registry_token.password}")
        config = {"auths": {front.address: {"auth": login}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("CLUSTRIX_CACHE_DIR", str(tmp_path / "cache"))
        shared = RegistryStore(f"{front.address}/{name}")
        before = tokens(registry_token)
        for element in range(count):
            assert shared.fetch(pod.expected(element), None, IMAGE)
        assert front.requests == 1
        with ThreadPoolExecutor(4) as pool:
            elements = [pod.expected(element) for element in range(count)]
            assert all(pool.map(lambda it: shared.fetch(it, None, IMAGE), elements))
        assert front.requests <= 5
        assert tokens(registry_token) - before == 1


def tokens(service: Service) -> int:
    """How many tokens the token service of all registries has been asked for."""
    log = service.directory.parent / "token-server" / "token-server.log"
    return log.read_text().count('"GET /')


def test_the_token_is_good_for_one_repository(
    tmp_path: Path, pod: Delivering, registry_token: Service
) -> None:
    opened = store.open_store(remote(registry_token, tmp_path), RUN, SUBJECT, seconds=200)
    pod.configured({**opened, "repository": "team/another"})
    code, _, err = pod.bare.run()
    assert code == 125
    reason = pod.undelivered()
    assert "401 UNAUTHORIZED" in reason
    assert opened["token"] not in err + pod.message


def test_a_token_that_lives_too_short(tmp_path: Path, registry_token: Service) -> None:
    with pytest.raises(
        ClusterError, match=r"is valid for (300|299) s, and the run may take 1000 s"
    ):
        store.open_store(remote(registry_token, tmp_path), RUN, SUBJECT, seconds=1000)


def test_a_registry_with_a_password_alone_is_refused(tmp_path: Path, registry_tls: Service) -> None:
    with pytest.raises(ClusterError, match="issues no tokens for a single repository") as caught:
        store.open_store(remote(registry_tls, tmp_path), RUN, SUBJECT, seconds=1)
    assert "never leave this machine" in str(caught.value)
    assert "S3" in str(caught.value)
    assert registry_tls.password not in str(caught.value)


def test_a_wrong_password_is_the_registrys_own_answer(
    tmp_path: Path, registry_token: Service
) -> None:
    where = Remote(
        f"{registry_token.address}/a/b",
        credentials=lambda *_: Credential("alice", "wrong", source="the test"),
        cache=tmp_path / "cache",
    )
    with pytest.raises(RegistryError, match="401"):
        store.open_store(where, RUN, SUBJECT, seconds=1)


def test_what_was_deleted_is_lost(tmp_path: Path, pod: Delivering, registry_open: Service) -> None:
    where = remote(registry_open, tmp_path, "team/deleted")
    pod.configured(store.open_store(where, RUN, SUBJECT, seconds=60))
    assert pod.bare.run()[0] == 0
    parsed = stored(pod)
    url = f"http://{registry_open.address}/v2/team/deleted/manifests/{parsed.manifest}"
    assert urllib3.request("DELETE", url).status == 202
    with pytest.raises(ResultLost, match="the result of element 0 no longer exists in"):
        fetch(where, pod, parsed)
    assert not fetch(where, pod, None)


def test_a_push_survives_a_registry_that_is_ill_for_a_while(
    tmp_path: Path, pod: Delivering, registry_open: Service
) -> None:
    where = remote(registry_open, tmp_path, "team/ill")
    opened = store.open_store(where, RUN, SUBJECT, seconds=60)
    acts = (answer(500), hang_up, answer(429, b"", "Retry-After: 0"))
    with Front(registry_open.address, *acts) as front:
        pod.configured({**opened, "base": f"http://{front.address}"})
        assert pod.bare.run() == (0, "", "")
    assert fetch(where, pod, stored(pod))


def test_tls_with_an_authority_of_its_own(
    tmp_path: Path, pod: Delivering, registry_tls: Service
) -> None:
    """That registry wants a password, which it does not get: but it was reached, and believed."""
    assert registry_tls.ca_file is not None
    opened: dict[str, Any] = {
        "kind": "registry", "base": f"https://{registry_tls.address}", "repository": "a/b", "tag": "t",
        "subject": SUBJECT.to_json(), "token": None,
    }  # fmt: skip
    reasons = []
    for authority in (None, registry_tls.ca_file.read_text()):
        pod.configured({**opened, "ca": authority})
        assert pod.bare.run()[0] == 125
        reasons.append(pod.undelivered())
    assert "is not trusted" in reasons[0]
    assert "401 UNAUTHORIZED" in reasons[1]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def lender(token: str) -> tuple[Any, Any]:
    """What answers like a registry and its token service, for one token."""
    return (
        answer(200, json.dumps({"token": token, "expires_in": 3600}).encode()),
        answer(202, b""),
    )


@pytest.mark.parametrize("encode", [str, encoded])
def test_a_token_that_is_the_password_in_disguise_is_not_handed_on(
    tmp_path: Path, encode: Callable[[str], str]
) -> None:
    password = "ghp_a-personal-access-token"
    granted, begun = lender(encode(password))
    with Front("") as service, Front("") as registry:
        challenge = f'WWW-Authenticate: Bearer realm="http://{service.address}/t",service="s"'
        service.then(granted)
        registry.then(answer(401, b"", challenge), begun, begun)
        where = Remote(
            f"{registry.address}/a/b",
            credentials=lambda *_: Credential("alice", password, source="the test"),
            cache=tmp_path / "cache",
        )
        with pytest.raises(ClusterError, match="contains the user's own secret") as caught:
            store.open_store(where, RUN, SUBJECT, seconds=1)
    assert password not in str(caught.value)
