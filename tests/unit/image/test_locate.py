from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import installer
import pytest
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.packages import wheels
from clustrix_containers.packages.wheels import locate

from .making import make_wheel

FILES = {
    "pkg/__init__.py": b"x = 1\n",
    "pkg-1.0.dist-info/entry_points.txt": b"[console_scripts]\np = pkg:x\n",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the real pip takes as its only index."""
    folder = tmp_path / "index with a space"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def install(wheel: Path, site: Path) -> Distribution:
    schemes = dict.fromkeys(("purelib", "platlib", "headers", "data"), str(site))
    destination = SchemeDictionaryDestination(
        {**schemes, "scripts": str(site / "bin")}, interpreter=sys.executable, script_kind="posix"
    )
    with WheelFile.open(wheel) as source:
        installer.install(source, destination, {"INSTALLER": b"x", "REQUESTED": b""})
    name, version = wheel.name.split("-")[:2]
    return Distribution(name, version, (), site, site / f"{name}-{version}.dist-info")


def test_the_wheel_it_came_from(index: Path, tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    seen: list[str] = []
    found = locate([distribution], cache=cache, progress=lambda what, *_: seen.append(what))
    assert found["pkg"].filename == wheel.name
    assert found["pkg"].size == wheel.stat().st_size
    assert (
        wheels.wheel_path(cache, found["pkg"].sha256, wheel.name).read_bytes() == wheel.read_bytes()
    )
    assert seen
    shutil.rmtree(index)
    assert locate([distribution], cache=cache) == found, "nobody is asked a second time"
    assert not list((cache / "tmp").iterdir())


def test_another_environment_uses_what_the_cache_has(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    found = locate([install(wheel, tmp_path / "a")], cache=cache)
    other = install(wheel, tmp_path / "b")
    (other.info / "REQUESTED").unlink(missing_ok=True)
    record = other.info / "RECORD"
    record.write_text(record.read_text() + "pkg/__pycache__/x.pyc,,\n")
    assert locate([other], cache=cache, fetch=False) == found


def test_another_build_is_not_used(index: Path, tmp_path: Path, cache: Path) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    make_wheel(index, "pkg", {**FILES, "pkg/__init__.py": b"x = 2\n"})
    assert locate([distribution], cache=cache) == {}
    (note,) = (cache / "located").iterdir()
    assert json.loads(note.read_bytes())["reason"] == "the index has another build of it"


def test_what_the_index_lacks_is_not_asked_for_again(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    other = make_wheel(index, "other", {"other.py": b""})
    both = [install(wheel, tmp_path / "site"), install(other, tmp_path / "site")]
    wheel.rename(tmp_path / wheel.name)
    assert set(locate(both, cache=cache)) == {"other"}, (
        "one that is missing does not hide the others"
    )
    (tmp_path / wheel.name).rename(wheel)
    assert set(locate(both, cache=cache)) == {"other"}
    for path in (cache / "located").iterdir():
        value = json.loads(path.read_bytes())
        if "until" in value:
            assert value["until"] > time.time() + wheels.REMEMBERED / 2
            path.write_text(json.dumps({**value, "until": 0}))
    assert set(locate(both, cache=cache)) == {"other", "pkg"}


def test_an_index_that_is_down(
    tmp_path: Path, cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert locate([distribution], cache=cache) == {}
    (note,) = (cache / "located").iterdir()
    value = json.loads(note.read_bytes())
    assert value["reason"] == "no package index answered"
    assert value["until"] < time.time() + wheels.OFFLINE + 1


def test_local_builds_are_never_asked_for(index: Path, tmp_path: Path, cache: Path) -> None:
    distribution = install(make_wheel(index, "pkg", FILES), tmp_path / "site")
    (distribution.info / "direct_url.json").write_text('{"url": "file:///src", "dir_info": {}}')
    assert locate([distribution], cache=cache) == {}
    assert not cache.exists()


def test_a_truncated_wheel_in_the_cache_is_fetched_again(
    index: Path, tmp_path: Path, cache: Path
) -> None:
    wheel = make_wheel(index, "pkg", FILES)
    distribution = install(wheel, tmp_path / "site")
    found = locate([distribution], cache=cache)["pkg"]
    stored = wheels.wheel_path(cache, found.sha256, found.filename)
    stored.write_bytes(stored.read_bytes()[:100])
    assert locate([distribution], cache=cache)["pkg"] == found
    assert stored.read_bytes() == wheel.read_bytes()
