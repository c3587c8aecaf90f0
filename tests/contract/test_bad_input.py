"""Bad input through the whole path: one clear error, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import CaptureError, ConfigError, DependencyError, Error, ImageError
from tests.cases import work

from .conftest import ROOT


def remains(home: Path) -> list[str]:
    """Runs, records' directories and half-written files under a test's own home."""
    found = [str(path) for path in (home / "state").glob("runs/*")]
    return found + [str(path) for path in home.rglob("*tmp*/*") if path.is_file()]


def holding(thing: object):
    def function():
        return thing

    return function


@pytest.mark.parametrize("kind", ["open file", "lock", "socket", "generator"])
def test_what_cannot_be_captured_is_named(kind: str, home: Path, tmp_path: Path) -> None:
    with open(tmp_path / "data file.csv", "w") as file, socket.socket() as sock:  # noqa: PTH123
        thing = {
            "open file": file,
            "lock": threading.Lock(),
            "socket": sock,
            "generator": (x for x in []),
        }[kind]
        with pytest.raises(CaptureError, match="thing") as info:
            cx.function(holding(thing)).submit()
    assert info.value.hint
    assert remains(home) == []


def test_argument_that_cannot_be_pickled_is_named(home: Path) -> None:
    with pytest.raises(CaptureError, match="lock") as info:
        cx.function(work.square).submit(threading.Lock())
    assert "argument" in str(info.value)
    assert remains(home) == []


def test_import_that_resolves_to_nothing(script, home: Path) -> None:
    done = script(
        """
import clustrix_containers as cx

def work(x):
    import modle_that_is_not_there
    return x

if __name__ == "__main__":
    cx.function(work).submit(1)
""",
        check=False,
    )
    assert done.returncode == 1
    assert "modle_that_is_not_there" in done.stderr
    assert "my script.py:5" in done.stderr
    assert remains(home) == []


def test_compiled_module_for_another_platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = home / "project"
    project.mkdir()
    (project / "uses_native_thing.py").write_text("def work():\n    import native_thing\n")
    arm_elf = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + (183).to_bytes(2, "little")
    )
    (project / "native_thing.so").write_bytes(arm_elf + bytes(100))
    monkeypatch.syspath_prepend(str(project))
    import uses_native_thing

    with pytest.raises(CaptureError, match="native_thing"):
        cx.function(uses_native_thing.work).submit()
    assert remains(home) == []


def test_unknown_target_and_option(home: Path) -> None:
    with pytest.raises(ConfigError, match="moon") as info:
        cx.function(work.square).submit(1, on="moon")
    assert "local" in str(info.value)
    with pytest.raises(ConfigError, match="memroy") as info:
        cx.function(memroy="2GiB")
    assert "memory" in str(info.value)
    assert remains(home) == []


def test_package_that_is_not_installed(home: Path) -> None:
    with pytest.raises(DependencyError, match="no-such-thing-1234") as info:
        cx.function(work.square, packages=["no-such-thing-1234"]).submit(1)
    assert "pip install" in str(info.value)


def test_secret_in_a_closure_is_refused_and_not_shown(home: Path) -> None:
    secret = "ghp_" + "a1B2" * 9
    with pytest.raises(CaptureError, match="thing") as info:
        cx.function(holding(secret)).submit()
    assert secret not in str(info.value)
    with pytest.raises(CaptureError) as info:
        cx.function(work.square).submit(secret)
    assert secret not in str(info.value)


def test_base_for_another_python(home: Path) -> None:
    from clustrix_containers.image.base import as_base
    from clustrix_containers.oci.model import Image

    other = "3.8" if sys.version_info[1] != 8 else "3.9"

    image = Image(settings={"Env": [f"PYTHON_VERSION={other}.1", "PATH=/usr/local/bin:/bin"]})
    with pytest.raises(ImageError, match=other) as info:
        as_base(image, "example.org/python:slim")
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in str(info.value)


def test_truncated_and_changed_blobs_in_the_cache_are_made_again(
    home: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "cache"
    shutil.copytree(cache, own, symlinks=True, ignore=shutil.ignore_patterns("rootfs*"))
    monkeypatch.setenv("CLUSTRIX_CACHE_DIR", str(own))
    first = cx.function(work.square).build()
    victims = [layer.blob for layer in first.layers if isinstance(layer.blob, Path)]
    assert victims
    shutil.rmtree(home / "data")
    for number, blob in enumerate(victims):
        data = blob.read_bytes()
        blob.unlink()
        blob.write_bytes(data[: len(data) // 2] if number % 2 else data[:-1] + b"!")
    assert cx.function(work.square).build().digest == first.digest
    assert cx.function(work.square).submit(3).result(60) == 9


def test_full_disk(home: Path) -> None:
    """State, images and cache on a file system of 3 MiB, in a mount namespace of its own."""
    full = home / "full"
    full.mkdir()
    inner = (
        'mount -t tmpfs -o size=3m tmpfs "$1" && cd "$1" && '
        '"$2" -m clustrix_containers run "$3" 1; code=$?; '
        'find "$1" -type f -name "*tmp*" >&2; find "$1/state/runs" -mindepth 1 2>/dev/null >&2; exit $code'
    )
    path = home / "squares.py"
    path.write_text("def square(x):\n    return x * x\n")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, "sh", str(full), sys.executable, f"{path}:square"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CLUSTRIX_CACHE_DIR": f"{full}/cache",
            "CLUSTRIX_DATA_DIR": f"{full}/data",
            "CLUSTRIX_STATE_DIR": f"{full}/state",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr or "disk is full" in done.stderr
    assert "tmp" not in done.stderr.split("\n", 2)[-1]


def test_result_of_an_image_that_this_user_did_not_build_stays_bytes(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from clustrix_containers.runs.submit import rerun

    job = cx.function(work.square).submit(5)
    assert job.result(60) == 25
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "another user"))
    again = rerun(job.image, cx.Options(), trust=False)
    with pytest.raises(cx.errors.UntrustedResultError, match="--trust"):
        again.jobs[0].result(60)
    assert rerun(job.image, cx.Options(), trust=True).jobs[0].result(60) == 25


def test_errors_survive_pickling() -> None:
    import pickle

    for error in (
        Error("m", hint="h", x=1),
        cx.errors.RegistryError("m", status=404, codes=("BLOB_UNKNOWN",), temporary=True),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.fields) == (type(error), str(error), error.fields)
