"""A large result streams: neither the worker nor the client holds more than a piece of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.oci.model import Descriptor
from clustrix_containers.registry import Remote
from clustrix_containers.results import delivery, directory
from clustrix_containers.results.stores import registry
from clustrix_containers.results.stores.s3 import S3Store
from tests.bare_worker import RUN, WORKER, interpreters
from tests.clusters.registry.cluster import Service
from tests.clusters.s3.cluster import BUCKET, S3
from tests.delivered import Delivering

MIB = 1 << 20
SIZES = [
    pytest.param(256 * MIB, id="256 MiB"),
    pytest.param(1024 * MIB, id="1 GiB", marks=pytest.mark.test_all),
]
PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print("peak", int(line.split()[1]) >> 10)
"""
# What the worker's parent does, without the child that made the value.
DELIVER = f"""
import json, sys, time
sys.path.insert(0, {str(WORKER.parent)!r})
import deliver
def stop_requested(seconds):
    time.sleep(seconds)
    return False
deliver.deliver(json.load(open(sys.argv[1])), sys.argv[2], 0, 0, stop_requested, None)
{PEAK}"""
FETCH = f"""
import sys
from pathlib import Path
from clustrix_containers.results import delivery
from clustrix_containers.results.stores import volume
from clustrix_containers.results.directory import collect
from clustrix_containers.results.outcome import Expected
from clustrix_containers.results.stores.registry import RegistryStore
from clustrix_containers.results.stores.s3 import S3Store
from tests.bare_worker import KEY, RUN
message, mine = delivery.read(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
expected = Expected(mine, RUN, 0, 0, KEY)
if message.kind == "s3":
    found = S3Store(*sys.argv[3:]).fetch(expected, message, "")
elif message.kind == "volume":
    found = volume.fetch(Path(sys.argv[3]), expected, message)
else:
    found = RegistryStore(sys.argv[3]).fetch(expected, message, "")
assert found
print(collect(expected).mark.size)
{PEAK}"""
GIVE = """
import runpy, sys
sys.argv[0] = sys.argv[1]
del sys.argv[1]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.stdout = sys.stderr
""" + PEAK.replace("for", "    for").replace("    if", "        if").replace(
    "        print", "            print"
)


@pytest.fixture(params=[0, -1], ids=["oldest", "newest"])
def python(request: pytest.FixtureRequest) -> str:
    return interpreters()[request.param]


@pytest.fixture(params=SIZES)
def pod(request: pytest.FixtureRequest, tmp_path: Path, python: str) -> Iterator[Delivering]:
    pod = Delivering.of(tmp_path, python, f"def f(): return bytearray({request.param})")
    # The outcome is written first, and delivered by each test.
    (pod.bare.root / "run/deliver").unlink()
    code, out, err = pod.bare.run()
    assert (code, out, err) == (0, "", "")
    yield pod.configured(None)
    for path in [*tmp_path.rglob("*.result")]:
        path.unlink()


def peak(
    python: str, program: str, *arguments: object, env: Mapping[str, str] | None = None
) -> int:
    """The largest resident size (MiB) of a Python process that ran ``program``."""
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **(env or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1])


def sent(pod: Delivering, store: dict[str, Any]) -> int:
    pod.configured(json.loads(json.dumps(store)))
    return peak(pod.bare.python, DELIVER, pod.bare.root / "run/deliver", pod.bare.root / "results")


def fetched(pod: Delivering, *arguments: object, **env: str) -> int:
    here = {"PYTHONPATH": str(Path.cwd()), "HOME": str(pod.mine), **env}
    return peak(sys.executable, FETCH, pod.message_file, pod.mine, *arguments, env=here)


def test_through_s3(pod: Delivering, s3_store: tuple[S3Store, dict[str, str]]) -> None:
    options, keys = s3_store
    assert sent(pod, options.open(RUN, "", 600)) < 50
    assert options.endpoint is not None
    arguments = (options.bucket, options.prefix, options.endpoint, str(options.region))
    assert fetched(pod, *arguments, **keys) < 150


@pytest.fixture
def s3_store(
    s3: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[tuple[S3Store, dict[str, str]]]:
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    options = S3Store(BUCKET, f"large/{request.node.name}", s3.endpoint, "us-east-1")
    yield options, keys
    client: Any = s3.client()
    prefix = options.keys(RUN)
    for it in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=it["Key"])
    client.close()


def test_through_a_registry(pod: Delivering, registry_open: Service) -> None:
    where = f"{registry_open.address}/large/runs"
    subject = Descriptor("a/b", "sha256:" + "0" * 64, 1)
    assert sent(pod, registry.open_store(Remote(where), RUN, subject, seconds=600)) < 50
    assert fetched(pod, where) < 150


def test_through_a_volume(pod: Delivering, tmp_path: Path) -> None:
    place = tmp_path / "volume" / RUN
    (tmp_path / "volume").mkdir()
    assert sent(pod, {"kind": "volume", "path": str(place), "claim": "results"}) < 50
    assert fetched(pod, place) < 150
    for part in ("results", "outcomes"):
        shutil.rmtree(pod.mine / part)
    streamed(pod, "read", place, "0", "0", "-", tmp_path / "sign")


def test_through_a_stream(pod: Delivering) -> None:
    streamed(pod, "give", pod.bare.root / "results", "0", "0")


def streamed(pod: Delivering, *arguments: object) -> None:
    """Take the outcome from the program in the image; its memory stays flat."""
    with subprocess.Popen(
        [pod.bare.python, "-c", GIVE, WORKER.with_name("deliver.py"), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert (
            process.stdout is not None and process.stdin is not None and process.stderr is not None
        )
        pieces = iter(lambda: process.stdout.read1(1 << 20) or None, None)  # type: ignore[union-attr]
        mark = delivery.receive(pieces, pod.expected())
        # Where nobody waits to hear it, the program may have ended.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"taken\n")
            process.stdin.close()
        assert int(process.stderr.read().split(b"peak ")[1]) < 50
    assert mark.size > 256 * MIB
    assert directory.collect(pod.expected()) is not None
