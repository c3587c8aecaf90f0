"""Results that leave a local container through a store, on a real S3 and a real registry."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import clustrix_containers as cx
from clustrix_containers.errors import ConfigError, ResultLost, WorkerDied
from clustrix_containers.runs.record import open_record
from tests.cases import work
from tests.clusters.registry.cluster import Service
from tests.clusters.s3.cluster import BUCKET, REGION, S3

from .targets import Target, on_targets

LARGE = 300_000
locally = on_targets("sandbox", "docker", "apptainer")
Storing = Callable[..., None]


@pytest.fixture
def storing(on: str, target: Target, home: Path) -> Storing:
    """Add options to the test's target."""

    def store(**more: Any) -> None:
        assert isinstance(target.options, str)
        options = {**yaml.safe_load(target.options), **more}
        config = {"default": on, "targets": {on: options}}
        (home / "clustrix.yml").write_text(json.dumps(config))

    return store


@pytest.fixture
def bucket(
    s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Mapping[str, str]:
    """The option ``results`` for an S3 store of this test's own."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "no config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "no credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    prefix = request.node.name
    return {"bucket": BUCKET, "endpoint": s3.endpoint, "region": REGION, "prefix": prefix}


def keys(s3: S3, options: Mapping[str, str]) -> list[str]:
    client = s3.client()
    try:
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{options['prefix']}/")
    finally:
        client.close()
    return sorted(it["Key"] for it in found.get("Contents", ()))


def run_files(run: str) -> Iterator[Path]:
    return (path for path in open_record().run_directory(run).rglob("*") if path.is_file())


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def supervisor_has_ended(run: str) -> bool:
    events = open_record().run_directory(run) / "local/0/events.jsonl"
    return json.loads(events.read_text().splitlines()[-1]).get("event") == "end"


@locally
def test_results_arrive_through_s3(storing: Storing, s3: S3, bucket: dict[str, str]) -> None:
    storing(results={"s3": bucket})
    jobs = cx.function(work.random_bytes).map([0, 0, 0], [10, LARGE, LARGE])
    assert [len(result) for result in jobs] == [10, LARGE, LARGE]
    assert f"the S3 bucket {BUCKET}" in jobs.how
    # What fits comes with the worker's message.
    stored = keys(s3, bucket)
    assert {key.split("/")[1] for key in stored} == {jobs.run}
    assert sorted(key.split("/")[2].split(".")[0] for key in stored) == ["1", "1", "2", "2"]
    until(lambda: supervisor_has_ended(jobs.run))
    left = list(run_files(jobs.run))
    assert not [path for path in left if path.name == "deliver"]
    assert not [path for path in left if "delivery" in path.parts and path.suffix == ".result"]
    again = cx.attach(jobs.run)
    assert [len(result) for result in again] == [10, LARGE, LARGE]


@locally
def test_failures_arrive_through_a_store(storing: Storing, bucket: dict[str, str]) -> None:
    storing(results={"s3": bucket})
    with pytest.raises(ZeroDivisionError):
        cx.function(work.divide).submit(0).result(60)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        cx.function(work.kills_itself).submit().result(60)


@on_targets("sandbox")
def test_no_credential_is_where_it_could_be_read(
    storing: Storing, s3: S3, bucket: dict[str, str], home: Path
) -> None:
    storing(results={"s3": bucket})
    job = cx.function(work.seen_while_it_runs).submit(1.0)
    directory = open_record().run_directory(job.run)
    until(lambda: (directory / "local/0/run/deliver").is_file())
    deliver = directory / "local/0/run/deliver"
    assert deliver.stat().st_mode & 0o777 == 0o400
    store = json.loads(deliver.read_text())["store"]
    signature = store["fields"]["x-amz-signature"]
    assert s3.secret_key not in deliver.read_text()
    secrets = [signature, s3.secret_key]
    commands = b"".join(
        data for path in Path("/proc").glob("[0-9]*/cmdline") if (data := readable(path))
    )
    seen = job.result(60)
    assert job.done()
    texts = [commands, *seen]
    texts += [readable(path) for path in home.rglob("*") if path.is_file() and path != deliver]
    for secret in secrets:
        assert not [text for text in texts if secret.encode() in text]


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@locally
def test_what_no_store_takes_is_lost_and_says_why(storing: Storing, bucket: dict[str, str]) -> None:
    storing(results={"s3": {**bucket, "bucket": "absent"}})
    job = cx.function(work.random_bytes).submit(0, LARGE)
    with pytest.raises(ResultLost, match=r"not delivered: .*bucket does not exist"):
        job.result(60)
    assert len(cx.function(work.random_bytes).submit(0, 10).result(60)) == 10


@locally
def test_results_arrive_through_the_images_registry(
    storing: Storing, registry_token: Service, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clustrix_containers.registry import Remote

    login = f"{registry_token.username}:{registry_token.password}"
    auths = {registry_token.address: {"auth": base64.b64encode(login.encode()).decode()}}
    (home / "config.json").write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("DOCKER_CONFIG", str(home))
    repository = f"{registry_token.address}/team/local-{home.name[-8:].lower().strip('_')}"
    storing(results={"registry": {"expires": 100}}, registry=repository)
    job = cx.function(work.random_bytes).submit(0, LARGE)
    assert len(job.result(120)) == LARGE
    manifest = json.loads(Remote(repository).manifest(f"cxr-{job.run}-0-0"))
    assert manifest["subject"]["digest"] == job.image
    assert Remote(repository).image(job.image).digest == job.image
    assert len(cx.attach(job.run).result(60)) == LARGE
    login_secret = registry_token.password.encode()
    assert not [path for path in run_files(job.run) if login_secret in path.read_bytes()]


@on_targets("sandbox")
def test_a_registry_store_needs_a_registry(storing: Storing, home: Path) -> None:
    storing(results="registry")
    with pytest.raises(ConfigError, match="none is named") as info:
        cx.function(work.square).submit(3)
    assert info.value.key == "registry"
    assert not list((home / "data").rglob("sha256/*"))


@locally
@pytest.mark.parametrize("command", ["submit", "doctor"])
def test_a_volume_is_refused_before_anything_is_built(
    storing: Storing, on: str, home: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from clustrix_containers.cli import main

    storing(results={"volume": {"claim": "results"}})
    text = f"target '{on}': a target of type 'local' cannot store results in 'volume'"
    if command == "submit":
        with pytest.raises(ConfigError) as info:
            cx.function(work.square).submit(3)
        assert info.value.message.endswith(text)
        assert info.value.hint == "Its result stores are: s3, registry."
        assert info.value.key == "results"
    else:
        assert main(["doctor"]) == 1
        assert text in capsys.readouterr().out
    assert not list((home / "data").rglob("sha256/*"))
    assert not list((home / "state").glob("runs/*"))


@on_targets("sandbox")
def test_doctor_says_where_results_go(
    storing: Storing, bucket: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from clustrix_containers.cli import main

    storing(results={"s3": bucket})
    assert main(["doctor"]) == 0
    assert f"results: larger ones go to the S3 bucket {BUCKET}" in capsys.readouterr().out
    storing(results="nowhere")
    assert main(["doctor"]) == 1
    assert "'nowhere' is not a result store" in capsys.readouterr().out
