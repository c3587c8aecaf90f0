"""Every release of cloudpickle that is admitted works: its private names are used.

``by_value.py`` runs on each release, in processes of its own. Releases come from PyPI, once.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from clustrix_containers.storage.locks import locked

from .conftest import ROOT

RELEASES = ("3.0.0", "3.1.0", "3.1.1", "3.1.2", "3.1.3")
PRODUCT = ROOT / "clustrix_containers"


def test_only_tested_releases_are_admitted() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    (line,) = (line for line in lines if "cloudpickle>" in line)
    requirement = Requirement(line.strip(' ",'))
    bounds = {it.operator: Version(it.version) for it in requirement.specifier}
    assert bounds == {">=": Version(RELEASES[0]), "<=": Version(RELEASES[-1])}


def test_private_names_are_imported_in_one_module() -> None:
    importing = {
        path.relative_to(PRODUCT).as_posix()
        for path in PRODUCT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes(), str(path)))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").partition(".")[0] == "cloudpickle"
    }
    assert importing == {"capture/pickling/reduction.py"}
    attributes = {
        node.attr
        for path in PRODUCT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes(), str(path)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "cloudpickle"
    }
    assert attributes <= {"Pickler", "dumps", "__file__"}


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    """A directory for ``PYTHONPATH`` that holds this release and nothing else."""
    version = request.param
    cache = platformdirs.user_cache_path("clustrix-containers") / "tests"
    directory = cache / f"cloudpickle-{version}"
    with locked(cache / "cloudpickle.lock"):
        if not directory.exists():
            with tempfile.TemporaryDirectory(prefix=".cloudpickle-", dir=cache) as partial:
                target = Path(partial) / "release"
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
                done = subprocess.run(
                    [*pip, "--target", target, f"cloudpickle=={version}"],
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stderr
                target.rename(directory)
    return directory


def test_by_value(release: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.unit.capture.by_value", str(release)]
    digests = set()
    for seed, options in (("1", ["run"]), ("2", [])):
        done = subprocess.run(
            [*program, str(tmp_path / seed), *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(release), "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1
