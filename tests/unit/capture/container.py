"""A code layer run as the contract says, in a process that sees nothing else of this machine.

The worker is tested elsewhere; this is the least that follows ``contract``.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from clustrix_containers.capture.bundle import Bundle, bundle_files
from clustrix_containers.worker import contract

_LOADER = r"""
import asyncio, importlib, inspect, json, os, pickle, sys, traceback, types
code, lib, call, out, main = sys.argv[1:6]
sys.path.insert(0, code)
sys.path.append(lib)
os.environ["CLUSTRIX_INSIDE"] = "1"
entry = json.load(open(os.path.join(code, ".clustrix/entry.json")))
if entry["script"]:
    module = types.ModuleType(main)
    module.__file__ = os.path.join(code, entry["script"])
    sys.modules[main] = module
    exec(compile(open(module.__file__, "rb").read(), module.__file__, "exec"), module.__dict__)
if entry["kind"] == "value":
    function = pickle.load(open(os.path.join(code, ".clustrix/function.pkl"), "rb"))
else:
    function = importlib.import_module(entry["module"])
    for part in entry["qualname"].split("."):
        function = getattr(function, part)
while hasattr(type(function), "__clustrix_function__"):
    function = function.__wrapped__
args, kwargs = pickle.load(open(call, "rb"))
try:
    value = function(*args, **kwargs)
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    elif inspect.isgenerator(value):
        value = list(value)
    try:
        result = pickle.dumps(("ok", value), 5)
    except Exception:
        import cloudpickle
        result = cloudpickle.dumps(("ok", value), 5)
except Exception:
    result = pickle.dumps(("error", traceback.format_exc()), 5)
open(out, "wb").write(result)
"""


def unpack(bundle: Bundle, root: Path) -> Path:
    """Write the code layer below ``root``."""
    for path, content in bundle_files(bundle):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return root


def run_raw(code: Path, call: bytes, work: Path, python: str = sys.executable) -> bytes:
    """Run the entry of an unpacked code layer; gives the pickle of ``(outcome, value)``.

    What ``/opt/clustrix/code`` is in a container is another path here, so the pickle's file
    names are only right in messages.
    """
    import cloudpickle

    lib = work / "lib"
    lib.mkdir(exist_ok=True)
    if not (lib / "cloudpickle").exists():
        (lib / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
        _link_runtime(lib)
    (work / "call").write_bytes(call)
    out = work / "out"
    # -I: no PYTHONPATH, no user site, not the working directory. -S: no site-packages.
    done = subprocess.run(
        [python, "-I", "-S", "-c", _LOADER, code, lib, work / "call", out, contract.MAIN],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def _link_runtime(lib: Path) -> None:
    """Of this package, only what an image carries."""
    import clustrix_containers
    from clustrix_containers.image.runtime import RUNTIME

    package = Path(clustrix_containers.__file__).parent
    for path in (path for pattern in RUNTIME for path in package.glob(pattern)):
        link = lib / "clustrix_containers" / path.relative_to(package)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)


def run(bundle: Bundle, work: Path, args: tuple[Any, ...] = (), **kwargs: Any) -> Any:
    """Run a bundle with arguments and give its value; AssertionError with its traceback."""
    from clustrix_containers.capture.pickling import dump_call, load
    from clustrix_containers.capture.source.program import script_module

    code = unpack(bundle, work / "code")
    data, _ = dump_call(args, kwargs)

    def main() -> Any:
        script = (code / str(bundle.entry.script)).read_bytes()
        return script_module(bundle.main, lambda: script)

    outcome, value = load(run_raw(code, data, work), main=main)
    assert outcome == "ok", value
    return value


def error(bundle: Bundle, work: Path, args: tuple[Any, ...] = ()) -> str:
    """The traceback that a bundle ends with."""
    code = unpack(bundle, work / "code")
    outcome, value = pickle.loads(run_raw(code, pickle.dumps((args, {})), work))
    assert outcome == "error", value
    return str(value)


def entry(bundle: Bundle) -> dict[str, Any]:
    """``entry.json`` as the worker reads it."""
    return dict(json.loads(dict(bundle_files(bundle))[contract.ENTRY]))
