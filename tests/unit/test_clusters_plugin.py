"""The rules of the test run itself: chosen by name, excluded by name, never skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TESTS = """
import pytest

@pytest.mark.registry
def test_on_registry(): pass

@pytest.mark.docker
def test_on_docker(): pass

@pytest.mark.docker
@pytest.mark.registry
def test_on_both(): pass

def test_on_nothing(): pass
"""


def run(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin on ``tests``, in a folder that knows nothing of this project."""
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers\nmarkers =\n    registry\n    docker\n    apptainer\n    test_all\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.clusters.plugin", "-rA", *options],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_what_is_excluded_does_not_run_and_the_summary_says_so(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    done = run(tmp_path, TESTS, "--exclude", "docker apptainer", *workers)

    assert done.returncode == 0, done.stdout
    assert "EXCLUDED by name: docker: not tested" in done.stdout
    assert "EXCLUDED by name: apptainer: not tested" in done.stdout
    assert "registry: 1 tests ran on the real thing" in done.stdout
    assert "PASSED test_it.py::test_on_nothing" in done.stdout
    assert "test_on_docker" not in done.stdout
    assert "test_on_both" not in done.stdout
    assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_what_takes_long_runs_when_all_is_asked_for_and_is_named_otherwise(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    tests = """
import pytest

@pytest.mark.test_all
@pytest.mark.parametrize("size", [1, 2])
def test_big(size): pass

@pytest.mark.test_all
@pytest.mark.docker
def test_big_on_docker(): pass

def test_small(): pass
"""
    done = run(tmp_path, tests, "--exclude", "docker", *workers)
    assert "only in `make test-all`: test_it.py::test_big: 2\n" in done.stdout
    assert "test_big_on_docker" not in done.stdout
    assert " 1 passed" in done.stdout.splitlines()[-1]

    done = run(tmp_path, tests, "--exclude", "docker", "--all", *workers)
    assert "only in" not in done.stdout
    assert " 3 passed" in done.stdout.splitlines()[-1]


def test_the_chosen_clusters_run_with_all_that_needs_none(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS, "--clusters", "registry,docker")

    assert " 4 passed" in done.stdout.splitlines()[-1]
    assert "docker: 2 tests ran" in done.stdout
    assert "EXCLUDED by name: apptainer" in done.stdout


def test_a_test_that_uses_a_clusters_fixture_is_one_of_its_tests(tmp_path: Path) -> None:
    tests = """
import pytest

@pytest.fixture
def docker_host(): return "unix://"

def test_unmarked(docker_host): pass
def test_free(): pass
"""
    done = run(tmp_path, tests, "--exclude", "docker")

    assert "1 passed, 1 deselected" in done.stdout


@pytest.mark.parametrize("option", ["--clusters", "--exclude"])
def test_an_unknown_name_is_refused(tmp_path: Path, option: str) -> None:
    done = run(tmp_path, TESTS, option, "dokcer")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{option}: no cluster is named dokcer" in done.stderr


@pytest.mark.parametrize(
    "tests",
    [
        "import pytest\npytest.skip('no such thing here', allow_module_level=True)",
        "import pytest\ndef test_it(): pytest.skip('no such thing here')",
        "import pytest\n@pytest.mark.skip(reason='no such thing here')\ndef test_it(): pass",
        "import pytest\n@pytest.mark.xfail(reason='no such thing here')\ndef test_it(): assert 0",
    ],
    ids=["module", "skip", "mark", "xfail"],
)
def test_a_skip_is_a_failure(tmp_path: Path, tests: str) -> None:
    done = run(tmp_path, tests)

    assert done.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    assert "no such thing here" in done.stdout
    assert "--exclude NAME" in done.stdout
