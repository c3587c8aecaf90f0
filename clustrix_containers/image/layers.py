"""The layers of a Lock's packages: one per large one, one for the rest, and their bytecode.

A package is large from 1 MiB on; the twelve largest have layers of their own (with a layer of
bytecode each, so that another project that uses them uploads neither). The others share one
layer if they are wheels, one if they are installed trees.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.oci.archive import Entry
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.progress import Progress
from clustrix_containers.oci.store import cache_key, recall, remember
from clustrix_containers.packages.installed import Installed
from clustrix_containers.packages.lock import Lock, Package
from clustrix_containers.packages.wheelhouse import obtain, wheel_path
from clustrix_containers.packages.wheels import (
    site_packages,
    wheel_entries,
    wheel_layer,
    wheels_layer,
)

from .bytecode import bytecode_layer, sources
from .libraries import base_abi, check_libraries, check_wheel
from .trees import find_installed, fingerprint, packed_files, tree_entries, trees_layer

LARGE = 1 << 20
MAX_LARGE = 12


@dataclass(frozen=True, slots=True)
class _Packable:
    """One package, ready to be packed: ``source`` is its wheel's file or what is installed."""

    package: Package
    source: Path | Installed
    size: int

    @property
    def key(self) -> Any:
        if isinstance(self.source, Installed):
            return [self.package.name, fingerprint(self.source)]
        assert self.package.wheel is not None
        return self.package.wheel.sha256

    def entries(self, python: str) -> list[Entry]:
        if isinstance(self.source, Installed):
            return tree_entries(self.source, python)
        return wheel_entries(self.source, python)


def package_layers(
    lock: Lock,
    base: Image,
    distributions: Iterable[Distribution] = (),
    *,
    cache: Path,
    progress: Progress | None = None,
) -> tuple[Layer, ...]:
    """The layers of all packages of a lock: wheels, installed trees, then their bytecode."""
    known_infos = {distribution.name: distribution for distribution in distributions}
    trees = {
        package.name: _tree(package, known_infos.get(package.name))
        for package in lock.packages
        if package.wheel is None
    }
    key = cache_key(
        "packages",
        lock.python,
        _running() == lock.python,
        base_abi(base),
        [
            package.wheel.sha256
            if package.wheel
            else [package.name, fingerprint(trees[package.name])]
            for package in lock.packages
        ],
    )
    known = recall(cache, key)
    if known is not None:
        return known
    for package in lock.packages:
        if package.wheel:
            check_wheel(package.wheel.filename, base)
    obtain(lock.packages, cache=cache)
    items = [_packable(package, trees, base, cache) for package in lock.packages]
    layers = _make(list(_tasks(items, lock.python, cache)), progress)
    remember(cache, key, layers)
    return layers


def _tree(package: Package, distribution: Distribution | None) -> Installed:
    if distribution is not None and distribution.version == package.version:
        return Installed.of(distribution)
    return find_installed(package.name, package.version)


def _packable(package: Package, trees: dict[str, Installed], base: Image, cache: Path) -> _Packable:
    if package.wheel is None:
        tree = trees[package.name]
        paths = [path for _, path in packed_files(tree)]
        check_libraries(tree.name, paths, base)
        # About what it compresses to, so that wheels and trees compare.
        return _Packable(package, tree, sum(path.stat().st_size for path in paths) // 3)
    path = wheel_path(cache, package.wheel.sha256, package.wheel.filename)
    return _Packable(package, path, package.wheel.size)


def _tasks(
    items: list[_Packable], python: str, cache: Path
) -> Iterator[tuple[str, Callable[[], Layer | None]]]:
    """Title and maker of each layer, in the layers' order."""
    ranked = sorted(items, key=lambda item: (-item.size, item.package.name))
    large = [item for item in ranked if item.size >= LARGE][:MAX_LARGE]
    rest = sorted((u for u in items if u not in large), key=lambda item: item.package.name)
    groups = [[item] for item in large]
    groups.append([item for item in rest if not isinstance(item.source, Installed)])
    groups.append([item for item in rest if isinstance(item.source, Installed)])
    groups = [group for group in groups if group]
    for group in groups:
        yield _title(group), _packer(group, python, cache)
    if _running() == python:
        for group in groups:
            yield f"bytecode of {_title(group)}", _compiler(group, python, cache)


def _packer(group: list[_Packable], python: str, cache: Path) -> Callable[[], Layer | None]:
    def pack() -> Layer:
        trees = [item.source for item in group if isinstance(item.source, Installed)]
        if trees:
            return trees_layer(trees, python, cache=cache)
        wheels = [
            (item.source, item.package.wheel.sha256)
            for item in group
            if isinstance(item.source, Path) and item.package.wheel
        ]
        if len(wheels) == 1:
            return wheel_layer(*wheels[0], python, cache=cache)
        return wheels_layer(wheels, python, cache=cache)

    return pack


def _compiler(group: list[_Packable], python: str, cache: Path) -> Callable[[], Layer | None]:
    def entries() -> Iterable[Entry]:
        found: dict[str, Entry] = {}
        for item in group:
            found.update((entry.name, entry) for entry in item.entries(python))
        return sources(found.values(), site_packages(python))

    def compile_all() -> Layer | None:
        return bytecode_layer(
            entries, [item.key for item in group], title=_title(group), cache=cache
        )

    return compile_all


def _make(
    tasks: list[tuple[str, Callable[[], Layer | None]]], progress: Progress | None
) -> tuple[Layer, ...]:
    # Hashing, inflating and compressing release the interpreter's lock.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        futures = [(title, pool.submit(task)) for title, task in tasks]
        layers = []
        for done, (title, future) in enumerate(futures):
            if progress:
                progress(title, done, len(futures))
            layers.append(future.result())
    if progress and tasks:
        progress("packages", len(tasks), len(tasks))
    return tuple(layer for layer in layers if layer is not None)


def _title(group: list[_Packable]) -> str:
    if len(group) == 1:
        return f"{group[0].package.name} {group[0].package.version}"
    return f"{len(group)} packages"


def _running() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
