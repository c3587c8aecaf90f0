"""The contract suite runs once for each target; a new cluster adds its name and its fixture here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache() -> Path:
    """One cache for all tests: what is in it is found by content, so it may stay."""
    directory = ROOT / ".cache" / "tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of one's own: state and images are this test's, the cache is everybody's."""
    monkeypatch.setenv("CLUSTRIX_CACHE_DIR", str(cache))
    monkeypatch.setenv("CLUSTRIX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CLUSTRIX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("CLUSTRIX_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture(params=["local"])
def on(request: pytest.FixtureRequest, home: Path) -> str:
    """The target that a contract test runs on."""
    return str(request.param)


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
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            cwd=home,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
