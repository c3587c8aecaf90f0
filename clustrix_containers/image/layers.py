"""The layers of a Lock's packages: one per large one, one for the rest, and their bytecode.

A package is large from 1 MiB on; the twelve largest have layers of their own (with a layer of
bytecode each, so that another project that uses them uploads neither). The others share one
layer if they are wheels, one if they are installed trees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clustrix_containers.image.base.libraries import base_abi, check_libraries, check_wheel
from clustrix_containers.oci.archive import Entry, write_layer
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.store import cache_key, cached_layers
from clustrix_containers.packages.installed import Installed
from clustrix_containers.packages.lock import Lock, Package
from clustrix_containers.packages.wheels.wheel import site_packages, split_filename, wheel_entries
from clustrix_containers.packages.wheels.wheelhouse import obtain, wheel_path
from clustrix_containers.remote.progress import Progress, silent

from .bytecode import bytecode_layer
from .trees import find_installed, fingerprint, packed_files, tree_entries

LARGE = 1 << 20
MAX_LARGE = 12


@dataclass(frozen=True, slots=True)
class Packable:
    """One package of a lock: ``source`` is its wheel's file, or what is installed."""

    package: Package
    source: Path | Installed

    @property
    def key(self) -> Any:
        """A JSON value that changes when a file of it does."""
        if isinstance(self.source, Installed):
            return [self.package.name, fingerprint(self.source)]
        assert self.package.wheel is not None
        return self.package.wheel.sha256

    def entries(self, python: str) -> list[Entry]:
        """What it puts into ``/opt/venv`` of a Python ``X.Y``."""
        if isinstance(self.source, Installed):
            return tree_entries(self.source, python)
        return wheel_entries(self.source, python)


def package_layers(
    lock: Lock, base: Image, *, cache: Path, progress: Progress = silent
) -> tuple[Layer, ...]:
    """The layers of all packages of a lock: wheels, installed trees, then their bytecode."""
    items = [
        Packable(
            it, wheel_path(cache, it.wheel) if it.wheel else find_installed(it.name, it.version)
        )
        for it in lock.packages
    ]

    def make() -> Iterator[Layer]:
        for package in lock.packages:
            if package.wheel:
                check_wheel(package.wheel.filename, base)
        obtain(lock.packages, cache=cache)
        groups = [(_title(group), group) for group in _groups(items, base) if group]
        tasks: list[tuple[str, Callable[[], Layer | None]]] = [
            (title, partial(pack, group, lock.python, cache=cache)) for title, group in groups
        ]
        for title, group in groups:
            entries, site = partial(_entries, group, lock.python), site_packages(lock.python)
            keys = [item.key for item in group]
            task = partial(bytecode_layer, entries, site, keys, title=title, cache=cache)
            tasks.append((f"bytecode of {title}", task))
        # Hashing, inflating and compressing release the interpreter's lock.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            futures = [pool.submit(task) for _, task in tasks]
            for done, ((title, _), future) in enumerate(zip(tasks, futures, strict=True)):
                progress(title, done, len(tasks))
                if (layer := future.result()) is not None:
                    yield layer
        if tasks:
            progress("packages", len(tasks), len(tasks))

    key = cache_key("packages", lock.python, base_abi(base), [item.key for item in items])
    return cached_layers(cache, key, make)


def _groups(items: Sequence[Packable], base: Image) -> list[list[Packable]]:
    """The packages of each layer, in the layers' order."""
    sizes = {item.package.name: _size(item, base) for item in items}
    ranked = sorted(items, key=lambda item: (-sizes[item.package.name], item.package.name))
    large = [item for item in ranked if sizes[item.package.name] >= LARGE][:MAX_LARGE]
    rest = sorted((it for it in items if it not in large), key=lambda item: item.package.name)
    wheels = [item for item in rest if item.package.wheel]
    trees = [item for item in rest if not item.package.wheel]
    return [*([item] for item in large), wheels, trees]


def _size(item: Packable, base: Image) -> int:
    """Bytes, for a tree about what it compresses to. Checks that its libraries run on the base."""
    if item.package.wheel is not None:
        return item.package.wheel.size
    assert isinstance(item.source, Installed)
    paths = [path for _, path in packed_files(item.source)]
    check_libraries(item.package.name, paths, base)
    return sum(path.stat().st_size for path in paths) // 3


def pack(group: Sequence[Packable], python: str, *, cache: Path) -> Layer:
    """One layer of wheels or of installed trees; made again when a file of theirs has changed.

    Of two files with one path the later package's wins.
    """
    trees = [str(item.source) for item in group if isinstance(item.source, Installed)]
    files = [item.source.name for item in group if isinstance(item.source, Path)]
    names = [split_filename(file) for file in files]
    if len(names) == 1:
        names = [(names[0][0].replace("_", "-"), names[0][1])]
    titles = ", ".join(trees or map(" ".join, names))
    wheels = f"{'wheel' if len(files) == 1 else 'wheels'} {', '.join(files)}"

    def make() -> Iterator[Layer]:
        yield write_layer(
            _entries(group, python),
            cache=cache,
            form="isal" if trees else "spliced",
            kind="wheel" if len(group) == 1 else "packages",
            title=titles,
            created_by=f"clustrix: installed {titles}" if trees else f"clustrix: {wheels}",
        )

    key = cache_key("layer", python, [item.key for item in group])
    (layer,) = cached_layers(cache, key, make)
    return layer


def _entries(group: Sequence[Packable], python: str) -> Iterable[Entry]:
    return {entry.name: entry for item in group for entry in item.entries(python)}.values()


def _title(group: Sequence[Packable]) -> str:
    if len(group) == 1:
        return f"{group[0].package.name} {group[0].package.version}"
    return f"{len(group)} packages"
