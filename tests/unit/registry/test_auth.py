"""Who gets our credentials, and who does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustrix_containers.credentials.registry import Credential
from clustrix_containers.errors import RegistryError
from clustrix_containers.oci.model import Descriptor, Image
from clustrix_containers.registry import Remote
from tests.clusters.certificates import Authority
from tests.fault_auth import Basic, Bearer
from tests.faults import FaultServer, answer
from tests.samples import image, layer, noise

Connect = Callable[..., Remote]
SECRET = "s3cret:with/colon é"


def mine(*_asked: str) -> Credential:
    return Credential("user", SECRET, source="the test")


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.make()
    return made


@pytest.fixture
def secure(authority: Authority) -> Iterator[FaultServer]:
    pair = authority.sign("server")
    with FaultServer((pair.certificate, pair.key)) as running:
        yield running


def authorizations(server: FaultServer) -> list[str]:
    return [it.headers["Authorization"] for it in server.seen if "Authorization" in it.headers]


# Basic and bearer


def test_nothing_is_sent_before_the_registry_asks(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    def never(*asked: str) -> Credential:
        raise AssertionError(f"asked for {asked}")

    connect(server, credentials=never).push(sample)
    assert authorizations(server) == []


def test_basic(server: FaultServer, connect: Connect, sample: Image) -> None:
    server.auth = Basic(SECRET)
    connect(server, credentials=mine).push(sample)
    assert server.manifests


def test_credentials_are_looked_up_for_this_repository(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    server.auth = Basic(SECRET)
    asked: list[tuple[str, str]] = []

    def lookup(registry: str, repository: str) -> Credential:
        asked.append((registry, repository))
        return mine()

    connect(server, credentials=lookup).push(sample)
    assert asked == [(server.address, "team/runs")]


@pytest.mark.parametrize("kind", [Basic, Bearer], ids=["basic", "bearer"])
def test_a_password_that_changes_meanwhile_is_looked_up_again(
    server: FaultServer, connect: Connect, sample: Image, kind: type[Basic | Bearer]
) -> None:
    # As an ECR token, which ends after 12 hours: its helper gives a new one.
    known = [Credential("user", "first")]
    first = server.auth = Basic("first") if kind is Basic else Bearer(server, password="first")
    there = connect(server, credentials=lambda *_: known[-1])
    there.push(sample)
    known.append(mine())
    first.password = SECRET
    if isinstance(first, Bearer):
        first.revoke()
    there.push(sample.configure(Env=["A=1"]))
    assert len([name for _, name in server.manifests if name.startswith("cx-")]) == 2


def test_bearer_asks_once_for_all_it_needs(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    connect(server, credentials=mine).push(sample)
    assert len(bearer.asked) == 1
    asked = bearer.asked[0]
    assert asked["service"] == ["a, b"]
    assert asked["scope"] == ["repository:team/runs:pull,push", "repository:x:pull"]
    assert asked["account"] == ["user"]


def test_a_mount_asks_for_both_repositories_in_one_token(
    server: FaultServer, connect: Connect, tmp_path: Path
) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    it = image(layer({"data": noise(100_000)}, "wheel", tmp_path))
    connect(server, "lib/base", credentials=mine).push(it)
    connect(server, credentials=mine).push(it)
    scopes = [asked["scope"][:2] for asked in bearer.asked]
    assert ["repository:team/runs:pull,push", "repository:lib/base:pull"] in scopes


def test_many_threads_share_a_token(server: FaultServer, connect: Connect, tmp_path: Path) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    it = image(*(layer({f"{n}": noise(2000, n)}, "code", tmp_path) for n in range(10)))
    connect(server, credentials=mine).push(it)
    assert len(bearer.asked) == 1


def test_a_token_that_ends_in_the_middle_is_renewed_once(
    server: FaultServer, connect: Connect, tmp_path: Path
) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    it = image(layer({"data": noise(500_000)}, "code", tmp_path))
    there = connect(server, credentials=mine)
    revoked = threading.Event()

    def progress(_blob: Descriptor, done: int) -> None:
        if done > 300_000 and not revoked.is_set():
            revoked.set()
            bearer.revoke()

    there.push(it, progress=progress)
    assert server.manifests
    assert len(bearer.asked) == 2


def test_a_token_is_not_used_beyond_its_time(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    bearer.expires_in = 0.001
    connect(server, credentials=mine).push(sample)
    refused = [it for it in server.seen if it.path.startswith("/v2/")]
    # A POST for each of two blobs may meet the challenge; after that no request is refused.
    assert len(refused) <= 5 + 2


def test_a_refusal_that_stays_is_one_error(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server, password=SECRET)
    wrong = Credential("user", "hunter2", source="config.json")
    with pytest.raises(RegistryError) as caught:
        connect(server, credentials=lambda *_: wrong).push(sample)
    assert "answered 401 Unauthorized for a token to use team/runs" in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert len(bearer.asked) <= 4


def test_an_identity_token_is_posted_and_never_in_an_address(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server, password="refresh-me")
    known = Credential(identity_token="refresh-me")
    connect(server, credentials=lambda *_: known).push(sample)
    assert bearer.asked[0]["grant_type"] == ["refresh_token"]
    assert bearer.asked[0]["scope"] == ["repository:team/runs:pull,push repository:x:pull"]
    assert not [it for it in server.seen if "refresh-me" in it.path]


def test_nobody_gets_an_anonymous_token(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server)
    connect(server).push(sample)
    assert bearer.asked[0]["authorization"] == [""]


def test_a_registry_token_is_sent_as_it_is(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    bearer = server.auth = Bearer(server)
    bearer.valid.add("as-it-is")
    known = Credential(registry_token="as-it-is")
    connect(server, credentials=lambda *_: known).push(sample)
    assert bearer.asked == []


@pytest.mark.parametrize("realm", ["", "not an address", "ftp://a/b", "http://["])
def test_a_realm_that_is_none(
    server: FaultServer, connect: Connect, sample: Image, realm: str
) -> None:
    server.auth = Bearer(server, realm=realm)
    with pytest.raises(RegistryError, match="has no valid realm"):
        connect(server, credentials=mine).push(sample)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": null}', b"<html>"])
def test_a_token_service_that_gives_none(
    server: FaultServer, connect: Connect, sample: Image, body: bytes
) -> None:
    server.auth = Bearer(server)
    server.on("GET", "/token", answer(200, body), times=9)
    with pytest.raises(RegistryError, match="has no token for"):
        connect(server).push(sample)


# Who must not get them


def test_a_redirect_to_another_host_carries_no_credentials(
    server: FaultServer, other: FaultServer, connect: Connect, sample: Image
) -> None:
    server.auth = Basic(SECRET)
    there = connect(server, credentials=mine)
    there.push(sample)
    blob = sample.layers[0].descriptor
    data = server.blobs["team/runs", blob.digest]
    other.on("GET", "/storage", answer(200, data), times=9)
    for status in (301, 302, 303, 307, 308):
        where = answer(status, Location=f"{other.url}/storage?signature=a%2Fb")
        server.on("GET", "/blobs/", where)
        with there.open_blob(blob) as stream:
            assert stream.read() == data
    assert len(other.seen) == 5
    assert {it.path for it in other.seen} == {"/storage?signature=a%2Fb"}
    assert authorizations(other) == []


def test_an_upload_to_another_host_carries_no_credentials(
    server: FaultServer, other: FaultServer, connect: Connect, sample: Image
) -> None:
    server.auth = Basic(SECRET)
    there = connect(server, credentials=mine)
    server.on("POST", "", answer(202, Location=f"{other.url}/somewhere"), times=9, after=1)
    other.on("PUT", "/somewhere", answer(201), times=9)
    with pytest.raises(RegistryError, match="404"):
        # The registry itself has no such blob: 404.
        there.push(sample)
    assert other.seen
    assert authorizations(other) == []


def test_a_challenge_by_a_redirects_target_is_not_answered(
    server: FaultServer, other: FaultServer, connect: Connect
) -> None:
    other.auth = Basic(SECRET)
    server.on("GET", "", answer(307, Location=f"{other.url}/v2/x/blobs/y"), times=9)
    with pytest.raises(RegistryError, match="401"):
        connect(server, credentials=mine).image("v1")
    assert authorizations(other) == []


def test_redirects_in_circles_end(server: FaultServer, connect: Connect) -> None:
    server.on("GET", "", answer(307, Location="/v2/again"), times=99)
    with pytest.raises(RegistryError, match="redirect loop"):
        connect(server).image("v1")
    assert len(server.seen) == 6


def test_from_https_nothing_goes_to_http(
    secure: FaultServer, other: FaultServer, connect: Connect, authority: Authority, sample: Image
) -> None:
    there = connect(secure, credentials=mine, ca_file=authority.pair.certificate)
    for name in ("127.0.0.1", "localhost"):
        where = f"http://{name}:{other.address.rpartition(':')[2]}/x"
        secure.on("GET", "/manifests/", answer(307, Location=where))
        with pytest.raises(RegistryError, match="over plain http"):
            there.image("v1")
    secure.auth = Bearer(secure, realm=f"{other.url}/token", password=SECRET)
    with pytest.raises(RegistryError, match="its token service does not"):
        there.push(sample)
    assert other.seen == []


def test_from_https_the_named_service_gets_the_password(
    secure: FaultServer, connect: Connect, authority: Authority, sample: Image
) -> None:
    pair = authority.sign("service")
    with FaultServer((pair.certificate, pair.key)) as service:
        bearer = Bearer(service, password=SECRET)
        service.auth = secure.auth = bearer
        there = connect(secure, credentials=mine, ca_file=authority.pair.certificate)
        there.push(sample)
        assert secure.manifests
        assert authorizations(service)
        assert all(it.startswith("Bearer token-") for it in authorizations(secure))


def test_over_plain_http_a_foreign_service_gets_no_password(
    server: FaultServer, connect: Connect, sample: Image
) -> None:
    server.auth = Bearer(server, realm="https://auth.example.org/token")
    with pytest.raises(
        RegistryError, match=r"its token service is another host: auth\.example\.org"
    ) as caught:
        connect(server, credentials=mine).push(sample)
    assert SECRET not in str(caught.value)


def test_a_token_service_that_redirects_is_not_followed(
    server: FaultServer, other: FaultServer, connect: Connect, sample: Image
) -> None:
    server.auth = Bearer(server, password=SECRET)
    server.on("GET", "/token", answer(307, Location=f"{other.url}/token"), times=9)
    with pytest.raises(RegistryError, match="307"):
        connect(server, credentials=mine).push(sample)
    assert other.seen == []


def test_a_location_without_tls_on_the_same_host_is_the_registry_itself(
    secure: FaultServer, connect: Connect, authority: Authority, sample: Image
) -> None:
    secure.scheme = "http"
    connect(secure, ca_file=authority.pair.certificate).push(sample)
    assert secure.manifests


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://[", "gopher://a", "http://a:b:c"]
)
def test_an_address_that_is_none(
    server: FaultServer, connect: Connect, sample: Image, location: str
) -> None:
    server.on("POST", "", answer(202, Location=location), times=9)
    with pytest.raises(RegistryError, match=r"not an http\(s\) URL"):
        connect(server).push(sample)


def test_a_remote_host_is_spoken_to_over_tls(sample: Image, tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        Remote("registry.invalid:5000/x", cache=tmp_path, credentials=mine).push(sample)
    assert caught.value.host == "registry.invalid:5000"
