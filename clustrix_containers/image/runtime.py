"""The runtime layer: the virtual environment's skeleton, our own files, and the places for what comes later."""

from __future__ import annotations

import importlib.util
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, directory, link, write_layer
from clustrix_containers.oci.model import Layer
from clustrix_containers.oci.store import cache_key, recall, remember
from clustrix_containers.packages.wheels import site_packages
from clustrix_containers.worker.contract import CALL, CODE, GIVER, LIB, RESULTS, RUN, VENV, WORKER

from .bytecode import compiled, sources

_PACKAGES = ("clustrix_containers", "cloudpickle")


def runtime_layer(interpreter: str, version: str, *, cache: Path) -> Layer:
    """For a base whose Python of this version (``X.Y`` or ``X.Y.Z``) is at the path ``interpreter``."""
    files = list(_library())
    stats = [(name, path.stat()) for name, path in files]
    key = cache_key(
        "runtime",
        interpreter,
        version,
        [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats],
    )
    known = recall(cache, key)
    if known:
        return known[0]
    entries = [*_skeleton(interpreter, version)]
    library = [Entry(name, path) for name, path in files]
    entries += [*library, *compiled(sources(library, LIB[1:]))]
    # Never in memory: the record needs a file.
    layer = write_layer(
        entries,
        cache=cache,
        form="stored",
        kind="runtime",
        title="clustrix runtime",
        in_memory=0,
    )
    remember(cache, key, [layer])
    return layer


def _skeleton(interpreter: str, version: str) -> Iterator[Entry]:
    minor = ".".join(version.split(".")[:2])
    venv = VENV[1:]
    config = (
        f"home = {posixpath.dirname(interpreter)}\n"
        "include-system-site-packages = false\n"
        f"version = {version}\n"
        f"executable = {interpreter}\n"
    )
    yield Entry(f"{venv}/pyvenv.cfg", config.encode())
    yield link(f"{venv}/bin/python", interpreter)
    yield link(f"{venv}/bin/python3", "python")
    yield link(f"{venv}/bin/python{minor}", "python")
    yield link(f"{venv}/lib64", "lib")
    yield directory(site_packages(minor))
    for place in (CODE, CALL, RESULTS, RUN):
        yield directory(place[1:])


def _library() -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImageError(
                f"{package} cannot be found here, and every image needs it",
                hint=f"pip install {package}",
            )
        top = str(next(iter(spec.submodule_search_locations)))
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if name not in ("__pycache__", "tests"))
            relative = os.path.relpath(folder, top)
            inside = f"{LIB[1:]}/{package}" + ("" if relative == "." else f"/{relative}")
            for name in sorted(names):
                if name.endswith((".py", ".typed", ".sh")):
                    yield f"{inside}/{name}", Path(folder, name)
    for place in (WORKER, GIVER):
        yield place[1:], Path(__file__).parent.parent / "worker" / Path(place).name
