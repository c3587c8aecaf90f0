"""What every image carries of ours: the virtual environment's skeleton, the runtime, and cloudpickle.

The *runtime* is the worker and the modules that user code may import in the container:
:data:`RUNTIME`. Its version, :data:`~clustrix_containers.worker.contract.RUNTIME_VERSION`, moves when
its bytes do and at no other time; ``tests/runtime_versions.json`` records which bytes each version
has. So a change to the command line, a registry client or a cluster changes no image's digest.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import cloudpickle

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, directory, link, write_layer
from clustrix_containers.oci.model import Layer, canonical
from clustrix_containers.oci.store import cache_key, cached_layers
from clustrix_containers.packages.lock import Component, Lock
from clustrix_containers.packages.wheels.wheel import site_packages
from clustrix_containers.worker.contract import (
    CALL,
    CODE,
    DELIVER_SCRIPT,
    LIB,
    RESULTS,
    RUN,
    RUNTIME_VERSION,
    VENV,
    WORKER,
    package_version,
)

from .bytecode import compiled

RUNTIME = ("__init__.py", "errors.py", "api/*.py", "worker/*.py")
"""Which files of this package. They import the standard library and each other, nothing else."""


def runtime_layer(interpreter: str, version: str, *, cache: Path) -> Layer:
    """For a base whose Python of this version (``X.Y`` or ``X.Y.Z``) is at the path ``interpreter``."""

    def make() -> Iterator[Layer]:
        library = [*_runtime_files(), *_cloudpickle_files()]
        yield write_layer(
            [*_skeleton(interpreter, version), *library, *compiled(library, LIB[1:])],
            cache=cache,
            form="stored",
            kind="runtime",
            title="clustrix runtime",
            in_memory=0,  # the record needs a file
        )

    key = cache_key(
        "runtime", interpreter, version, runtime().sha256, cloudpickle_component().sha256
    )
    (layer,) = cached_layers(cache, key, make)
    return layer


@lru_cache(maxsize=1)
def runtime() -> Component:
    """The runtime that this client puts into images."""
    # The skeleton is the same but for the interpreter's path and version.
    return Component(RUNTIME_VERSION, _digest([*_skeleton("PYTHON", "X.Y"), *_runtime_files()]))


@lru_cache(maxsize=1)
def cloudpickle_component() -> Component:
    """The cloudpickle that is installed here, which travels with the runtime."""
    from importlib.metadata import version

    return Component(version("cloudpickle"), _digest(_cloudpickle_files()))


def check_runtime(lock: Lock) -> None:
    """ImageError unless this client has the runtime and the cloudpickle that a lock names."""
    problems, commands = [], []
    ours = runtime()
    if lock.runtime != ours:
        problems.append(
            f"it needs the runtime {_named(lock.runtime)} of clustrix-containers {lock.client},"
            f" clustrix-containers {package_version()} has {_named(ours)}"
        )
        commands.append(f"clustrix-containers=={lock.client}")
    installed = cloudpickle_component()
    if lock.cloudpickle != installed:
        problems.append(
            f"it needs cloudpickle {_named(lock.cloudpickle)}, {_named(installed)} is installed"
        )
        commands.append(f"cloudpickle=={lock.cloudpickle.version}")
    if problems:
        raise ImageError(
            f"the lock cannot be built here: {'; '.join(problems)}",
            hint=f"pip install {' '.join(commands)}, or lock again: cxc lock.",
            runtime=lock.runtime.version,
            cloudpickle=lock.cloudpickle.version,
            client=lock.client,
        )


def _named(component: Component) -> str:
    return f"{component.version} (sha256:{component.sha256[:12]}…)"


def _digest(entries: Iterable[Entry]) -> str:
    """Over names, kinds, link targets and contents."""
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
        assert isinstance(content, bytes)
        sha256 = hashlib.sha256(content).hexdigest()
        rows.append([entry.name, entry.type.name, entry.target, sha256])
    return hashlib.sha256(canonical(rows)).hexdigest()


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


def _runtime_files() -> Iterator[Entry]:
    package = Path(__file__).parent.parent
    programs = {Path(place).name: place for place in (WORKER, DELIVER_SCRIPT)}
    for pattern in RUNTIME:
        for path in sorted(package.glob(pattern)):
            place = f"{LIB}/{package.name}/{path.relative_to(package).as_posix()}"
            yield Entry(programs.get(path.name, place)[1:], path)


def _cloudpickle_files() -> Iterator[Entry]:
    for path in sorted(Path(cloudpickle.__file__).parent.glob("*.py")):
        yield Entry(f"{LIB[1:]}/cloudpickle/{path.name}", path)
