"""The contract suite runs once for each target of :mod:`.targets`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import wait_until
from tests.clusters.plugin import FIXTURES
from tests.validation import validate_layout

from .targets import TARGETS, Target, as_parameter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache() -> Path:
    """One cache for all tests: what is in it is found by content, so it may stay."""
    directory = ROOT / ".cache" / "tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user of one's own: state and images are this test's, the cache is everybody's.

    Every image that the test has made is validated at its end.
    """
    monkeypatch.setenv("CLUSTRIX_CACHE_DIR", str(cache))
    monkeypatch.setenv("CLUSTRIX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("CLUSTRIX_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path
    validate_layout(tmp_path / "data" / "images")


@pytest.fixture(params=[as_parameter(target) for target in TARGETS.values()])
def target(request: pytest.FixtureRequest) -> Target:
    """The target that a contract test runs on."""
    return request.param


@pytest.fixture
def on(
    target: Target, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The target's name. It is the default of the test's own ``clustrix.yml``, too."""
    address = None
    if target.cluster is not None:
        address = request.getfixturevalue(FIXTURES[target.cluster])
        for name, value in target.variables(address).items():
            monkeypatch.setenv(name, value)
    if target.plugin is not None:
        monkeypatch.syspath_prepend(target.plugin)
        monkeypatch.setenv("PYTHONPATH", f"{target.plugin}{os.pathsep}{ROOT}")
    config = home / "clustrix.yml"
    options = target.options if isinstance(target.options, str) else target.options(address)
    config.write_text(f"default: {target.name}\ntargets:\n  {target.name}: {options}\n")
    monkeypatch.setenv("CLUSTRIX_CONFIG", str(config))
    yield target.name
    assert wait_until(lambda: not target.remains(address), 20), target.remains(address)


@pytest.fixture
def script(home: Path):
    """Write a script and run it in a process of its own; gives what it printed."""

    def run(text: str, *arguments: str, name: str = "my script.py", check: bool = True, **env: str):
        path = home / "project" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={"PYTHONPATH": str(ROOT), **os.environ, **env},
            cwd=home,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
