from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from clustrix_containers.image.bytecode import bytecode_layer, compiled
from clustrix_containers.oci.archive import Entry
from clustrix_containers.oci.model import Image
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.packages.wheels.wheel import wheel_entries
from tests.validation import validate

from .making import MINOR, make_wheel

SITE = f"opt/venv/lib/python{MINOR}/site-packages"
TAG = sys.implementation.cache_tag
SOURCE = b'''
"""A module with everything that marshal writes."""
import os
names = {"a", "b", "c"}
def f(x, y=(1, 2.5, 3j, b"bytes", None, ..., "\xc3\xbc", 10**30)):
    if x in {"one", "two", "three", "four"}:
        return [n for n in y[1:2]]
    class Inner:
        def method(self): return lambda: (x, y, -0.0, True)
    return Inner().method()
'''


def make(tmp_path: Path) -> list[Entry]:
    files = {
        "pkg/__init__.py": SOURCE,
        "pkg/broken.py": b"def (\n",
        "pkg/odd.py": b"# coding: latin-1\nx = '\xe9'\n",
        "pkg/nul.py": b"x = 1\0\n",
        "pkg/empty.py": b"",
        "pkg/tests/test_it.py": b"x = 1\n",
        "pkg/data.txt": b"x",
    }
    return wheel_entries(make_wheel(tmp_path, "pkg", files), MINOR)


def test_what_is_compiled(tmp_path: Path) -> None:
    found = {entry.name for entry in compiled(make(tmp_path), SITE)}
    assert found == {f"{SITE}/pkg/__pycache__/{n}.{TAG}.pyc" for n in ("__init__", "odd", "empty")}


def test_it_is_used_without_a_look_at_the_source(tmp_path: Path, cache: Path) -> None:
    entries = make(tmp_path)
    layer = bytecode_layer(lambda: entries, SITE, "key", title="pkg", cache=cache)
    assert layer is not None
    validate(Image((layer,)))
    unpack(layer, tmp_path / "r")
    pyc = tmp_path / "r" / SITE / f"pkg/__pycache__/__init__.{TAG}.pyc"
    (pyc.parent.parent / "__init__.py").write_bytes(b"this is not what was compiled")
    spec = importlib.util.spec_from_file_location("pkg", pyc.parent.parent / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.f("one") == [2.5]
    assert module.f(0)()[2:] == (-0.0, True)
    raw = pyc.read_bytes()
    assert raw[:8] == importlib.util.MAGIC_NUMBER + b"\1\0\0\0"
    assert f"/{SITE}/pkg/__init__.py".encode() in raw, "tracebacks name the path in the image"
    again = bytecode_layer(lambda: [] / 0, SITE, "key", title="pkg", cache=cache)  # type: ignore[operator]
    assert again == layer, "made once"


def test_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    make(tmp_path)
    script = (
        "import sys,pathlib,hashlib\n"
        "from clustrix_containers.image.bytecode import compiled\n"
        "from clustrix_containers.packages.wheels.wheel import wheel_entries\n"
        "import json, typing, dataclasses, email.message, logging.config\n"
        f"(wheel,) = pathlib.Path(sys.argv[1]).glob('*.whl')\n"
        f"found = compiled(wheel_entries(wheel, {MINOR!r}), {SITE!r})\n"
        "print(hashlib.sha256(b''.join(entry.content for entry in found)).hexdigest())\n"
    )
    digests = set()
    for seed, cwd in (("1", "/"), ("2", str(tmp_path)), ("random", "/tmp")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONOPTIMIZE": seed.replace("random", "")}
        env["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_nothing_to_compile(cache: Path) -> None:
    for _ in range(2):
        assert bytecode_layer(list, SITE, "nothing", title="", cache=cache) is None
