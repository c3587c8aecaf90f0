"""Results through an S3 bucket: the client signs, the worker writes, the client takes."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.errors import ClusterError, ConfigError, ResultError, ResultLost
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.stores.s3 import S3Store
from tests.bare_worker import RUN, interpreters
from tests.clusters.s3.cluster import BUCKET, S3
from tests.delivered import Delivering
from tests.front import Front, answer, hang_up

IMAGE = "registry.example.org/a@sha256:" + "0" * 64
LARGE = "import os\ndef f(): return os.urandom(3_000_000)"
AWS = (
    "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine's own."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def keys(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


@pytest.fixture
def options(s3: S3, keys: None, request: pytest.FixtureRequest) -> S3Store:
    prefix = f"/team a/ü '{request.node.name}/"
    return S3Store(BUCKET, prefix, s3.endpoint, "us-east-1")


@pytest.fixture
def pod(tmp_path: Path) -> Delivering:
    return Delivering.of(tmp_path, sys.executable, LARGE)


@pytest.fixture
def client(s3: S3) -> Iterator[Any]:
    client = s3.client()
    yield client
    client.close()


def fetch(options: S3Store, pod: Delivering, stored: Stored | None) -> bool:
    return options.fetch(pod.expected(), stored, IMAGE)


def opened(options: S3Store, run: str = RUN, *, seconds: float) -> dict[str, Any]:
    return replace(options, expires=seconds).open(run, IMAGE, seconds)


def stored(pod: Delivering) -> Stored:
    parsed = pod.parsed_message()
    assert isinstance(parsed, Stored)
    return parsed


@pytest.mark.parametrize("python", interpreters())
def test_a_result_goes_through_the_bucket(tmp_path: Path, python: str, options: S3Store) -> None:
    pod = Delivering.of(tmp_path / "p", python, LARGE)
    assert not fetch(options, pod, None)
    signed = opened(options, seconds=60)
    pod.configured(json.loads(json.dumps(signed)))
    assert pod.bare.run() == (0, "", "")
    assert fetch(options, pod, stored(pod))
    assert len(pod.value()) == 3_000_000
    assert {path.suffix for path in (pod.mine / "results").iterdir()} == {".mark"}


def test_without_its_message_it_is_found_by_listing(pod: Delivering, options: S3Store) -> None:
    pod.configured(opened(options, seconds=60))
    assert pod.bare.run()[0] == 0
    assert not options.fetch(pod.expected(attempt=1), None, IMAGE)
    assert not options.fetch(pod.expected(1), None, IMAGE)
    assert fetch(options, pod, None)
    assert fetch(options, pod, stored(pod))
    assert len(pod.value()) == 3_000_000


def test_the_first_valid_mark_counts(pod: Delivering, options: S3Store, client: Any) -> None:
    pod.configured(opened(options, seconds=60))
    name = f"{options.keys(RUN)}0.0.{'0' * 16}.mark"
    client.put_object(Bucket=BUCKET, Key=name, Body=b"{}")
    assert pod.bare.run()[0] == 0
    assert fetch(options, pod, None)
    assert len(pod.value()) == 3_000_000
    with pytest.raises(ResultError):
        fetch(options, Delivering(pod.bare, pod.mine), Stored("s3", f"0.0.{'0' * 16}.mark", None))
    with pytest.raises(ResultError, match="names another's mark"):
        fetch(options, pod, Stored("s3", f"1.0.{'0' * 16}.mark", None))


def test_what_was_deleted_is_lost(pod: Delivering, options: S3Store, client: Any) -> None:
    pod.configured(opened(options, seconds=60))
    assert pod.bare.run()[0] == 0
    parsed = stored(pod)
    client.delete_object(Bucket=BUCKET, Key=options.keys(RUN) + str(parsed.result))
    with pytest.raises(ResultLost, match=r"does not have .*result"):
        fetch(options, pod, parsed)
    client.delete_object(Bucket=BUCKET, Key=options.keys(RUN) + parsed.mark)
    with pytest.raises(ResultLost, match=r"does not have .*mark"):
        fetch(options, pod, parsed)
    assert not fetch(options, pod, None)
    assert not [path for path in pod.mine.rglob("*") if path.is_file()]


def test_another_result_is_not_believed(pod: Delivering, options: S3Store, client: Any) -> None:
    pod.configured(opened(options, seconds=60))
    assert pod.bare.run()[0] == 0
    parsed = stored(pod)
    size = pod.bare.outcome().mark.size
    for body in (b"x" * size, b"x" * (size + 1), b"x"):
        client.put_object(Bucket=BUCKET, Key=options.keys(RUN) + str(parsed.result), Body=body)
        with pytest.raises(ResultError):
            fetch(options, pod, parsed)
    assert not [path for path in pod.mine.rglob("*") if path.is_file()]


def test_an_upload_survives_a_store_that_is_ill_for_a_while(
    pod: Delivering, options: S3Store, s3: S3
) -> None:
    signed = opened(options, seconds=60)
    with Front(
        s3.endpoint.removeprefix("http://"),
        answer(500),
        hang_up,
        answer(503, b"", "Retry-After: 0"),
    ) as front:
        url = signed["url"].replace(s3.endpoint, f"http://{front.address}")
        pod.configured({**signed, "url": url})
        assert pod.bare.run() == (0, "", "")
        assert front.requests == 5
    assert fetch(options, pod, stored(pod))


def test_an_upload_that_breaks_off_is_made_again(pod: Delivering, options: S3Store, s3: S3) -> None:
    pod.configured(opened(options, seconds=60))
    s3.cut_next(1_000_000)
    assert pod.bare.run() == (0, "", "")
    assert fetch(options, pod, stored(pod))
    assert len(pod.value()) == 3_000_000


def test_another_runs_prefix_is_out_of_reach(pod: Delivering, options: S3Store) -> None:
    signed = opened(options, "another", seconds=60)
    pod.configured({**signed, "prefix": options.keys(RUN)})
    code, _, err = pod.bare.run()
    assert code == 125
    reason = pod.undelivered()
    assert "403" in reason
    for secret in (signed["fields"]["policy"], signed["fields"]["x-amz-signature"]):
        assert secret not in err + pod.message


def test_a_policy_that_has_ended_is_told(pod: Delivering, options: S3Store) -> None:
    pod.configured(opened(options, seconds=-5))
    assert pod.bare.run()[0] == 125
    reason = pod.undelivered()
    assert "expired" in reason.lower()


def test_tls_with_an_authority_of_its_own(
    pod: Delivering, options: S3Store, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure = S3Store(BUCKET, options.prefix, s3.tls_endpoint, "us-east-1")
    signed = opened(secure, seconds=60)
    assert signed["ca"] is None
    pod.configured(signed)
    assert pod.bare.run()[0] == 125
    reason = pod.undelivered()
    assert "is not trusted" in reason
    with pytest.raises(ClusterError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(secure, pod, None)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(s3.ca_file))
    pod.configured(opened(secure, seconds=60))
    assert pod.bare.run() == (0, "", "")
    assert fetch(replace(secure), pod, stored(pod))
    assert len(pod.value()) == 3_000_000


def test_one_client_for_all_elements(pod: Delivering, options: S3Store, s3: S3) -> None:
    count = 12
    with Front(s3.endpoint.removeprefix("http://")) as front:
        shared = replace(options, endpoint=f"http://{front.address}")
        for element in range(count):
            pod.configured({**shared.open(RUN, IMAGE, 0), "url": f"{s3.endpoint}/{BUCKET}"})
            assert pod.bare.run(element) == (0, "", "")
        assert front.requests == 0
        for element in range(count):
            assert shared.fetch(pod.expected(element), None, IMAGE)
        assert front.requests == 1
        # Those that are fetched side by side have a few connections, all of one client.
        with ThreadPoolExecutor(4) as pool:
            elements = [pod.expected(element) for element in range(count)]
            assert all(pool.map(lambda it: shared.fetch(it, None, IMAGE), elements))
        assert front.requests <= 4


# --- before anything is submitted -------------------------------------------------------------


def test_without_credentials(s3: S3) -> None:
    options = S3Store(BUCKET, endpoint=s3.endpoint)
    with pytest.raises(ClusterError, match="no AWS credentials"):
        opened(options, seconds=60)


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="nobody"):
        opened(S3Store(BUCKET, profile="nobody"), seconds=60)


def test_a_signature_lives_seven_days(options: S3Store) -> None:
    assert opened(options, seconds=7 * 86400)
    with pytest.raises(ClusterError, match=r"valid for 7 days, and the run may take 7\.01 days"):
        opened(options, seconds=7.01 * 86400)


def test_credentials_that_end_too_early(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=3)
    given = {
        "Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "hush", "SessionToken": "token",
        "Expiration": end.isoformat(),
    }  # fmt: skip
    (tmp_path / "given.json").write_text(json.dumps(given))
    text = f"[profile short]\ncredential_process = cat '{tmp_path / 'given.json'}'\n"
    (tmp_path / "aws-config").write_text(text)
    options = S3Store(BUCKET, endpoint=s3.endpoint, region="us-east-1", profile="short")
    assert opened(options, seconds=2.9 * 3600)["fields"]["x-amz-security-token"]
    with pytest.raises(
        ClusterError, match=r"valid for 3 hours at most, .* take 3\.1 hours"
    ) as caught:
        opened(options, seconds=3.1 * 3600)
    assert "hush" not in str(caught.value)


def test_a_session_token_does_not_live_for_days(
    options: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert opened(options, seconds=36 * 3600)
    with pytest.raises(ClusterError, match="valid for 36 hours at most"):
        opened(options, seconds=37 * 3600)


def test_an_endpoint_that_does_not_answer(pod: Delivering, keys: None) -> None:
    with Front("", hang_up) as front:
        options = S3Store(BUCKET, endpoint=f"http://{front.address}", region="us-east-1")
        with pytest.raises(ClusterError, match="cannot be reached") as caught:
            fetch(options, pod, None)
        assert caught.value.temporary


def test_a_bucket_that_is_not_there(pod: Delivering, options: S3Store) -> None:
    with pytest.raises(ClusterError, match=r"nowhere .*refused: .*NoSuchBucket") as caught:
        fetch(S3Store("nowhere", "", options.endpoint, "us-east-1"), pod, None)
    assert not caught.value.temporary
