"""What images carry of ours: little, closed under import, and named by version and digest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import clustrix_containers
from clustrix_containers.errors import ImageError
from clustrix_containers.image.build import build
from clustrix_containers.image.runtime import RUNTIME, cloudpickle_component, runtime
from clustrix_containers.oci.reading import read_files
from clustrix_containers.packages.lock import Component
from clustrix_containers.worker.contract import LAYER_KIND, LIB, RUNTIME_VERSION
from tests.record_runtime import recorded

from .making import bundle, lock
from .test_build import REMOTE

PACKAGE = Path(clustrix_containers.__file__).parent
ROOT = PACKAGE.parent


def carried(cache: Path, top: Path) -> dict[str, bytes]:
    """The runtime layer's files, which are then below ``top``, too."""
    (layer,) = build(bundle(), lock(), REMOTE, cache=cache).kinds(LAYER_KIND, "runtime")
    files = read_files(layer)
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def test_the_files(cache: Path, tmp_path: Path) -> None:
    files = carried(cache, tmp_path / "root")
    lib = LIB[1:]
    names = {
        name.removeprefix(f"{lib}/clustrix_containers/") for name in files if "pyc" not in name
    }
    modules = {path.name for path in (PACKAGE / "api").glob("*.py")}
    assert {name for name in names if not name.startswith("opt/")} == {
        "__init__.py", "errors.py", "worker/__init__.py", "worker/contract.py",
        *(f"api/{name}" for name in modules),
    }  # fmt: skip
    assert {name for name in names if name.startswith("opt/")} == {
        "opt/clustrix/worker.py", "opt/clustrix/deliver.py", "opt/venv/pyvenv.cfg",
        f"{lib}/cloudpickle/__init__.py", f"{lib}/cloudpickle/cloudpickle.py",
        f"{lib}/cloudpickle/cloudpickle_fast.py",
    }  # fmt: skip
    version = clustrix_containers.__version__.encode()
    assert [name for name in files if "clustrix" in name and version in files[name]] == []


INSIDE = """
import json, pkgutil, importlib, sys
sys.path.append(sys.argv[1])
import clustrix_containers as cx
for found in pkgutil.walk_packages(cx.__path__, "clustrix_containers."):
    importlib.import_module(found.name)
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

@cx.function(cpus=2, memory="1GiB", timeout="30m")
def double(x):
    return 2 * x

def refused(call):
    try:
        call()
    except cx.errors.InsideImageError:
        return True

print(json.dumps([sorted(foreign - {"__main__", "sitecustomize"}), double(2), double.local(3),
    [refused(call) for call in (
        lambda: double.submit(1), lambda: double.map([1]), lambda: double.preview(1), double.build,
        double.explain, lambda: double.push("r/x"), lambda: cx.attach("f-1"), cx.image_directory,
        lambda: cx.Executor().submit(len, ""), lambda: cx.Executor().map(len, [""]))],
    cx.__version__]))
"""


def test_it_works_alone(cache: Path, tmp_path: Path) -> None:
    carried(cache, tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", INSIDE, f"{tmp_path}{LIB}"],
        env={"CLUSTRIX_INSIDE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    foreign, called, local, refused, version = json.loads(done.stdout)
    assert foreign == ["clustrix_containers"]
    assert (called, local) == (4, 6)
    assert refused == [True] * 10
    assert version == f"runtime {RUNTIME_VERSION}"


def test_a_version_has_the_bytes_that_are_recorded() -> None:
    current = runtime()
    assert recorded().get(current.version) == current.sha256, (
        f"What images carry of ours has changed ({', '.join(RUNTIME)}), so every image gets another"
        f" digest. If version {current.version} of the runtime was released, raise RUNTIME_VERSION in"
        " clustrix_containers/worker/contract.py. Then run: python -m tests.record_runtime"
    )


DIGEST = """
import sys, pathlib, clustrix_containers
assert clustrix_containers.__file__.startswith(sys.argv[1]), clustrix_containers.__file__
from tests.unit.image.making import bundle, lock
from tests.unit.image.test_build import REMOTE
from clustrix_containers.image.build import build
print(build(bundle(), lock(), REMOTE, cache=pathlib.Path(sys.argv[2])).digest)
"""


class TestTwoVersions:
    """Two copies of the client, of which one was changed."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        shutil.copytree(PACKAGE, tmp_path / "other/clustrix_containers")
        return tmp_path / "other"

    @staticmethod
    def digest(client: Path, cache: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, str(client), str(cache)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=client,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_a_change_of_the_client_changes_no_digest(self, copy: Path, tmp_path: Path) -> None:
        for folder in ("cli", "clusters", "containers", "config", "registry", "results", "runs"):
            for path in (copy / "clustrix_containers" / folder).rglob("*.py"):
                text = path.read_text()
                path.write_text(f"{text.replace('cannot', 'can not')}\n# Changed.\n")
            (copy / "clustrix_containers" / folder / "new.py").write_text("new = 1\n")
        assert self.digest(copy, tmp_path / "a") == self.digest(ROOT, tmp_path / "b")

    @pytest.mark.parametrize("name", ["worker/worker.py", "errors.py", "api/options.py"])
    def test_a_change_of_the_runtime_does(self, copy: Path, tmp_path: Path, name: str) -> None:
        with (copy / "clustrix_containers" / name).open("a") as file:
            file.write("# Changed.\n")
        assert self.digest(copy, tmp_path / "a") != self.digest(ROOT, tmp_path / "b")


class TestALockOfAnotherClient:
    OLD = Component("0", "0" * 64)

    def test_an_older_runtime(self, cache: Path) -> None:
        old = replace(lock(), runtime=self.OLD, client="0.0.7")
        with pytest.raises(
            ImageError, match=r"needs the runtime 0 .*of clustrix-containers 0\.0\.7"
        ) as caught:
            build(bundle(), old, REMOTE, cache=cache)
        assert "pip install clustrix-containers==0.0.7, or lock again" in str(caught.value)

    def test_other_bytes_of_the_same_version(self, cache: Path) -> None:
        changed = replace(lock(), runtime=replace(runtime(), sha256="0" * 64))
        with pytest.raises(ImageError, match="needs the runtime"):
            build(bundle(), changed, REMOTE, cache=cache)

    def test_another_cloudpickle(self, cache: Path) -> None:
        old = replace(lock(), cloudpickle=replace(self.OLD, version="2.9"))
        with pytest.raises(ImageError, match=r"needs cloudpickle 2\.9") as caught:
            build(bundle(), old, REMOTE, cache=cache)
        assert "pip install cloudpickle==2.9," in str(caught.value)
        assert caught.value.cloudpickle == "2.9"
        assert cloudpickle_component().version in str(caught.value)
