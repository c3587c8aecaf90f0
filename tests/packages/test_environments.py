"""Environments of several package managers with the same distributions give one image digest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clustrix_containers.storage.locks import locked

ROOT = Path(__file__).resolve().parents[2]
MANAGERS = {"uv": "0.13.9", "poetry": "2.5.1", "pdm": "2.29.4"}
# pdm 2.29 allows hishel 2, and fails with it.
BESIDE = {"pdm": ["hishel<2"]}
# Pure, with a console script, and compiled.
PINS = ["packaging==26.0", "six==1.17.0", "tabulate==0.9.0", "markupsafe==3.0.3"]
TOOLS = ("pip", *MANAGERS)

PROJECT = f"""
[project]
name = "project"
version = "1"
requires-python = "=={sys.version_info[0]}.{sys.version_info[1]}.*"
dependencies = {json.dumps(PINS)}

[tool.poetry]
package-mode = false

# The repository API that all package managers have in common.
[[tool.poetry.source]]
name = "simple"
url = "https://pypi.org/simple/"

[tool.pdm]
distribution = false
"""

MODEL = """
import markupsafe, six, tabulate
from packaging.version import Version

def render(x):
    return tabulate.tabulate([[six.text_type(markupsafe.escape(x)), Version("1.0")]])
"""

BUILD = """
import json, sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[0]).parent))
from model import render
from clustrix_containers.capture.callables import capture
from clustrix_containers.image.base.interpreter import packed
from clustrix_containers.image.build import build
from clustrix_containers.image.runtime import cloudpickle_component, runtime
from clustrix_containers.packages.lock import Lock, pin
from clustrix_containers.packages.resolution import resolve
from clustrix_containers.packages.wheels.wheelhouse import locate

cache, bases = Path(sys.argv[1]), Path(sys.argv[2])
bundle = capture(render)
resolution = resolve(bundle.imports)
located = locate(resolution.distributions, cache=cache)
base = packed(bases)
locked = Lock(
    "%d.%d" % sys.version_info[:2], str(base.platform), f"packed:{base.digest}",
    pin(resolution.distributions, located.wheels, {}),
    runtime=runtime(), cloudpickle=cloudpickle_component(), client="0",
)
image = build(bundle, locked, base, cache=cache)
print(json.dumps({
    "digest": image.digest,
    "wheels": {package.name: package.wheel.filename for package in locked.packages if package.wheel},
    "reasons": located.reasons,
    "pip": bool(list(Path(sys.prefix).glob("lib/python*/site-packages/pip"))),
    "installers": sorted({(d.info / "INSTALLER").read_text() for d in resolution.distributions}),
}))
"""


def run(*command: object, cwd: Path, **variables: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment |= {key: str(value) for key, value in variables.items()}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def manager(tool: str, folder: Path) -> Path:
    """The command of a package manager, in a virtual environment of its own."""
    place = folder / f"{tool}-itself"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        run(sys.executable, "-m", "venv", place, cwd=folder)
        pins = [f"{tool}=={MANAGERS[tool]}", *BESIDE.get(tool, [])]
        run(place / "bin/pip", "install", "--quiet", *pins, cwd=folder)
        (place / "complete").touch()
    return place / "bin" / tool


def environment(tool: str, folder: Path) -> Path:
    """The Python of a virtual environment that this tool filled; only pip's has a pip in it."""
    place = folder / tool
    python = place / "env/bin/python"
    if (place / "complete").exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "pyproject.toml").write_text(PROJECT)
    options = [] if tool == "pip" else ["--without-pip"]
    run(sys.executable, "-m", "venv", *options, place / "env", cwd=place)
    if tool == "pip":
        run(python, "-m", "pip", "install", "--no-deps", *PINS, cwd=place)
    elif tool == "uv":
        run(manager(tool, folder), "pip", "install", "--python", python, *PINS, cwd=place)
    elif tool == "poetry":
        settings = {"POETRY_CACHE_DIR": place / "cache", "VIRTUAL_ENV": place / "env"}
        run(manager(tool, folder), "install", "--no-interaction", cwd=place, **settings)
    else:
        settings = {"PDM_CHECK_UPDATE": "false", "VIRTUAL_ENV": place / "env"}
        run(
            manager(tool, folder),
            "--non-interactive",
            "install",
            "--no-self",
            cwd=place,
            **settings,
        )
    # The project under test and what it requires, behind what the tool installed.
    site = next((place / "env/lib").glob("python*/site-packages"))
    (site / "project.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (place / "complete").touch()
    return python


@pytest.fixture(scope="module")
def pythons() -> dict[str, Path]:
    """Made once per checkout, interpreter and set of versions."""
    key = json.dumps([MANAGERS, PINS, sys.version, sys.prefix, str(ROOT)]).encode()
    folder = ROOT / ".cache/tests/environments" / hashlib.sha256(key).hexdigest()[:12]
    with locked(folder / "lock"), ThreadPoolExecutor(len(TOOLS)) as pool:
        made = pool.map(lambda tool: environment(tool, folder), TOOLS)
        return dict(zip(TOOLS, made, strict=True))


@pytest.mark.timeout(900)
def test_one_digest_whatever_installed_the_environment(
    pythons: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "make.py").write_text(BUILD)
    bases = tmp_path / "bases"
    built = {
        tool: json.loads(run(python, tmp_path / "make.py", tmp_path / tool, bases, cwd=tmp_path))
        for tool, python in pythons.items()
    }
    assert {tool: found["pip"] for tool, found in built.items()} == {
        tool: tool == "pip" for tool in TOOLS
    }
    for tool, found in built.items():
        assert found["reasons"] == {}, tool
        assert len(found["wheels"]) == len(PINS), tool
    assert len({found["digest"] for found in built.values()}) == 1, built
    assert len({str(found["installers"]) for found in built.values()}) >= 3, built
