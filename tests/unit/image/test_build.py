from __future__ import annotations

import _ctypes
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.capture.bundle import Bundle, Entry, File
from clustrix_containers.errors import ImageError
from clustrix_containers.image import layers as packages
from clustrix_containers.image.base import LABEL_GLIBC, LIBRARIES, as_base
from clustrix_containers.image.build import MAX_LAYERS, build, call_layer
from clustrix_containers.oci.model import LAYER_GZIP, Descriptor, Image, Layer, sha256
from clustrix_containers.oci.reading import read_files
from clustrix_containers.packages.lock import Package
from clustrix_containers.worker.contract import LABEL_FUNCTION, LAYER_KIND, LAYER_TITLE
from tests.validation import validate

from .making import MINOR, bundle, lock, make_wheel, package

REMOTE = as_base(
    Image(
        (Layer(Descriptor(LAYER_GZIP, sha256(b"1"), 1), sha256(b"2")),),
        settings={
            "Env": ["PATH=/usr/local/bin:/bin", "GREETING=a=b", "HOME=/root"],
            "Labels": {"theirs": "kept"},
            "Cmd": ["python3"],
            "ExposedPorts": {"80/tcp": {}},
        },
    ),
    "python",
    python=f"/usr/local/bin/python{MINOR}",
)


def kinds(image: Image) -> list[str]:
    return [layer.descriptor.annotations[LAYER_KIND] for layer in image.layers]


def wheel(tmp_path: Path, name: str, size: int = 0, **files: bytes) -> Path:
    content = {f"{name}/__init__.py": f"name = {name!r}\n".encode()}
    if size:
        content[f"{name}/big.bin"] = os.urandom(size)
    return make_wheel(tmp_path / "wheels", name, content)


def test_it_runs(base: Image, tmp_path: Path, cache: Path, run_in: Callable[..., str]) -> None:
    made = make_wheel(
        tmp_path,
        "greet",
        {
            "greet/__init__.py": b"def main():\n    print('hello')\n",
            "greet-1.0.dist-info/entry_points.txt": b"[console_scripts]\ngreet = greet:main\n",
            "greet.pth": b"import sys; sys.greeted = True\n",
        },
    )
    image = build(bundle(), lock(package(made, cache)), base, cache=cache)
    image = image.append(call_layer([b"1", b"22"], cache=cache)[0])
    validate(image)
    assert kinds(image) == [
        "base", "bytecode", "wheel", "bytecode", "runtime", "code", "call",
    ]  # fmt: skip
    script = (
        "import sys, json, greet, cloudpickle, importlib.metadata as m, os\n"
        "sys.path.insert(0, '/opt/clustrix/code'); import m as mod\n"
        "print(json.dumps([sys.prefix, sys.executable, sys.greeted, m.version('greet'), mod.f(1),\n"
        " greet.__cached__ and os.path.exists(greet.__cached__), cloudpickle.__file__,\n"
        " [p for p in sys.path if p and not p.startswith('/opt/')]]))"
    )
    code = f"import sys; sys.path.append('/opt/clustrix/lib')\n{script}"
    found = json.loads(run_in(image, "/opt/venv/bin/python", "-c", code))
    assert found == [
        "/opt/venv",
        "/opt/venv/bin/python",
        True,
        "1.0",
        2,
        True,
        "/opt/clustrix/lib/cloudpickle/__init__.py",
        [],
    ]
    assert run_in(image, "/bin/sh", "-c", "greet") == "hello\n"
    for place in ("code", "call", "results", "run"):
        assert (
            run_in(image, "/bin/sh", "-c", f"test -d /opt/clustrix/{place} && echo yes") == "yes\n"
        )


def test_the_config(cache: Path) -> None:
    image = build(bundle(), lock(), REMOTE, cache=cache)
    validate(image)
    settings = dict(image.settings)
    env = dict(item.split("=", 1) for item in settings.pop("Env"))
    assert env["PATH"] == "/opt/venv/bin:/usr/local/bin:/bin"
    assert env["GREETING"] == "a=b"
    assert env["HOME"] == "/tmp"
    assert env["CLUSTRIX_INSIDE"] == env["PYTHONNOUSERSITE"] == "1"
    labels = settings.pop("Labels")
    assert labels["theirs"] == "kept"
    assert labels[LABEL_FUNCTION] == "f"
    assert settings == {
        "Entrypoint": ["/opt/venv/bin/python", "/opt/clustrix/worker.py"],
        "WorkingDir": "/tmp",
        "User": "65534:65534",
        "ExposedPorts": {"80/tcp": {}},
    }


def test_what_the_code_layer_holds(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "tool").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o700)
    captured = Bundle(
        Entry("value", "m", "f", "f", "dir/sü.py"),
        (File("dir/sü.py", b"1", ""), File("bin/tool", tmp_path / "tool", "")),
        (),
        function=b"a pickle",
    )
    image = build(captured, lock(), REMOTE, cache=cache)
    validate(image)
    files = read_files(image.layers[-1])
    entry = json.loads(files.pop("opt/clustrix/code/.clustrix/entry.json"))
    assert entry == {
        "version": 1, "kind": "value", "module": "m", "qualname": "f", "name": "f",
        "script": "dir/sü.py",
    }  # fmt: skip
    assert files == {
        "opt/clustrix/code/.clustrix/function.pkl": b"a pickle",
        "opt/clustrix/code/dir/sü.py": b"1",
        "opt/clustrix/code/bin/tool": b"#!/bin/sh\n",
    }


@pytest.mark.parametrize("path", ["../x.py", "/etc/x", "a//b"])
def test_hostile_code_paths(path: str, cache: Path) -> None:
    captured = replace(bundle(), files=(File(path, b"", ""),))
    with pytest.raises(ImageError, match="not a name"):
        build(captured, lock(), REMOTE, cache=cache)


def test_a_one_line_edit_changes_the_code_layer_only(tmp_path: Path, cache: Path) -> None:
    locked = lock(package(wheel(tmp_path, "one", 1 << 21), cache))
    one = build(bundle(m=b"def f(): return 1\n"), locked, REMOTE, cache=cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    two = build(bundle(m=b"def f(): return 2\n"), locked, REMOTE, cache=cache)
    assert one.layers[:-1] == two.layers[:-1]
    assert one.layers[-1] != two.layers[-1]
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert before == after, "no file is written"


def test_large_wheels_have_layers_of_their_own(tmp_path: Path, cache: Path) -> None:
    count = packages.MAX_LARGE + 2
    sizes = [packages.LARGE + 5000 * n for n in range(count)]
    made = [package(wheel(tmp_path, f"large{n}", size), cache) for n, size in enumerate(sizes)]
    made += [package(wheel(tmp_path, f"small{n}"), cache) for n in range(3)]
    image = build(bundle(), lock(*made), REMOTE, cache=cache)
    validate(image)
    titles = [
        layer.descriptor.annotations[LAYER_TITLE] for layer in image.kinds(LAYER_KIND, "wheel")
    ]
    assert titles == [f"large{n} 1.0" for n in range(count - 1, 1, -1)], "biggest first"
    (rest,) = image.kinds(LAYER_KIND, "packages")
    assert {name.split("/")[5] for name in read_files(rest) if "dist-info" not in name} == {
        "large0", "large1", "small0", "small1", "small2",
    }  # fmt: skip
    other = build(bundle(), lock(*made[:-1]), REMOTE, cache=cache)
    assert list(image.kinds(LAYER_KIND, "wheel")) == list(other.kinds(LAYER_KIND, "wheel"))


def test_what_has_no_wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(site), str(wheel(tmp_path, "local"))], check=True)
    monkeypatch.syspath_prepend(site)
    locked = lock(Package("local", "1.0", None, "sha256:" + "0" * 64))
    image = build(bundle(), locked, REMOTE, cache=cache)
    validate(image)
    assert build(bundle(), locked, REMOTE, cache=cache) == image
    (site / "local/__init__.py").write_bytes(b"changed = 1\n")
    assert build(bundle(), locked, REMOTE, cache=cache).digest != image.digest
    monkeypatch.undo()
    with pytest.raises(ImageError, match=r"local 1\.0 of the lock is not installed here"):
        build(bundle(), locked, REMOTE, cache=cache)


def test_what_cannot_be_built(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ImageError, match=r"lock is for Python 3\.7, the base image has Python"):
        build(bundle(), replace(lock(), python="3.7"), REMOTE, cache=cache)
    crowd = replace(REMOTE, layers=REMOTE.layers * (MAX_LAYERS - 1))
    with pytest.raises(ImageError, match=str(MAX_LAYERS)):
        build(bundle(), lock(), crowd, cache=cache)


def test_a_lock_from_another_machine(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path, "one")
    locked = lock(package(path, tmp_path / "another machine's cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        ImageError, match=r"one-1\.0-py3-none-any\.whl of the lock is not in the cache"
    ):
        build(bundle(), locked, REMOTE, cache=cache)
    monkeypatch.setenv("PIP_FIND_LINKS", path.parent.as_uri())
    image = build(bundle(), locked, REMOTE, cache=cache)
    validate(image)
    path.write_bytes(make_wheel(tmp_path / "changed", "one", {"one.py": b"changed"}).read_bytes())
    with pytest.raises(ImageError, match="of the lock is not in the cache"):
        build(bundle(), locked, REMOTE, cache=tmp_path / "third")


def test_libraries_that_the_base_lacks(
    base: Image, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = next(
        path for path in Path(_ctypes.__file__).parent.glob("*.so") if "_ctypes" in path.name
    )
    site = tmp_path / "site"
    site.mkdir()
    (site / "local").mkdir()
    (site / "local" / extension.name).write_bytes(extension.read_bytes())
    info = site / "local-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(f"local/{extension.name},,\n")
    (info / "METADATA").write_text("Name: local\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    locked = lock(Package("local", "1.0", None, "sha256:" + "0" * 64))
    validate(build(bundle(), locked, base, cache=cache))
    first, *rest = base.layers
    notes = {**first.descriptor.annotations, LIBRARIES: "libc.so.6 libpthread.so.0"}
    poor = replace(
        base,
        layers=(replace(first, descriptor=replace(first.descriptor, annotations=notes)), *rest),
    )
    with pytest.raises(ImageError, match=r"_ctypes.* of local needs libffi.*base does not have"):
        build(bundle(), locked, poor, cache=cache)
    old = base.configure(Labels={**base.settings["Labels"], LABEL_GLIBC: "2.1"})
    with pytest.raises(ImageError, match=r"of local needs glibc 2\.\d+, the base has glibc 2\.1"):
        build(bundle(), locked, old, cache=cache)


SCRIPT = """
import sys, pathlib
from tests.unit.image.making import bundle, lock, package
from tests.unit.image.test_build import REMOTE
from clustrix_containers.image.build import build, call_layer
cache = pathlib.Path(sys.argv[1])
locked = lock(*(package(pathlib.Path(path), cache) for path in sys.argv[2:]))
layer, _ = call_layer([b"call"], cache=cache)
print(build(bundle(), locked, REMOTE, cache=cache).append(layer).digest)
"""


def test_the_same_digest_in_any_process(tmp_path: Path) -> None:
    wheels = [str(wheel(tmp_path, name, size)) for name, size in (("one", 1 << 21), ("two", 0))]
    here = Path(__file__).parents[3]
    digests = set()
    for number, (umask, env) in enumerate(
        [
            (0o022, {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"}),
            (0o077, {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"}),
        ]
    ):
        cwd = tmp_path / f"cwd {number}"
        cwd.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"cache{number}"), *wheels],
            env={**os.environ, **env, "PYTHONPATH": str(here), "PYTHONUTF8": "1"},
            cwd=cwd,
            umask=umask,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def read_call(layer: Layer) -> list[bytes]:
    files = read_files(layer)
    index, data = files["opt/clustrix/call/index"], files["opt/clustrix/call/data"]
    return [data[at : at + size] for at, size in struct.iter_unpack("<QQ", index)]


def test_calls(cache: Path) -> None:
    calls = [b"", b"one", bytes(range(256)) * 10]
    layer, count = call_layer(iter(calls), cache=cache)
    image = build(bundle(), lock(), REMOTE, cache=cache).append(layer)
    validate(image)
    assert read_call(image.layers[-1]) == calls
    assert count == 3
    assert image.settings["Labels"][LABEL_FUNCTION] == "f"


def test_many_calls_with_flat_memory(cache: Path) -> None:
    one = os.urandom(4000)
    tracemalloc.start()
    try:
        layer, count = call_layer(itertools.repeat(one, 10_000), cache=cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert isinstance(layer.blob, Path)
    assert layer.size > 40_000_000
    assert peak < 25_000_000
    assert list((cache / "tmp").iterdir()) == []
    validate(Image((layer,)))
    assert read_call(layer) == [one] * 10_000


def test_a_call_that_fails_leaves_nothing(cache: Path) -> None:
    def calls() -> itertools.chain[bytes]:
        return itertools.chain([b"x" * (5 << 20)], (1 / 0 for _ in "1"))  # type: ignore[list-item]

    with pytest.raises(ZeroDivisionError):
        call_layer(calls(), cache=cache)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_the_runtime_layer_has_no_paths_of_this_machine(cache: Path) -> None:
    image = build(bundle(), lock(), REMOTE, cache=cache)
    (runtime,) = image.kinds(LAYER_KIND, "runtime")
    files = read_files(runtime)
    here = str(Path(__file__).parents[3]).encode()
    assert [name for name, content in files.items() if here in content] == []
    assert isinstance(runtime.blob, Path)
    with tarfile.open(fileobj=io.BytesIO(runtime.blob.read_bytes())) as archive:
        links = {m.name: m.linkname for m in archive if m.issym()}
    assert links["opt/venv/bin/python"] == f"/usr/local/bin/python{MINOR}"
