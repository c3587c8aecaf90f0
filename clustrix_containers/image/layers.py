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
from clustrix_containers.oci.store import Progress, cache_key, recall, remember
from clustrix_containers.packages.lock import Lock, Package
from clustrix_containers.packages.records import site_packages
from clustrix_containers.packages.wheelfile import wheel_entries
from clustrix_containers.packages.wheels import obtain, wheel_layer, wheel_path, wheels_layer

from .bytecode import bytecode_layer, sources
from .installed import Tree, find_tree, tree_entries, trees_layer
from .libraries import base_abi, check_libraries, check_wheel

LARGE = 1 << 20
MOST = 12


@dataclass(frozen=True, slots=True)
class _Unit:
    """One package, ready to be packed: ``source`` is its wheel's file or its tree."""

    package: Package
    source: Path | Tree
    size: int

    @property
    def key(self) -> Any:
        if isinstance(self.source, Tree):
            return [self.package.name, self.source.fingerprint()]
        assert self.package.wheel is not None
        return self.package.wheel.sha256

    def entries(self, python: str) -> list[Entry]:
        if isinstance(self.source, Tree):
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
    """The layers of all packages of the lock, wheels first, then bytecode; recalled if made before."""
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
            else [package.name, trees[package.name].fingerprint()]
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
    units = [_unit(package, trees, base, cache) for package in lock.packages]
    layers = _make(list(_tasks(units, lock.python, cache)), progress)
    remember(cache, key, layers)
    return layers


def _tree(package: Package, distribution: Distribution | None) -> Tree:
    if distribution is not None and distribution.version == package.version:
        return Tree(package.name, package.version, distribution.info)
    return find_tree(package.name, package.version, sys.path)


def _unit(package: Package, trees: dict[str, Tree], base: Image, cache: Path) -> _Unit:
    if package.wheel is None:
        tree = trees[package.name]
        check_libraries(tree.name, [path for _, path in tree.files()], base)
        # About what it compresses to, so that wheels and trees compare.
        return _Unit(package, tree, sum(path.stat().st_size for _, path in tree.files()) // 3)
    path = wheel_path(cache, package.wheel.sha256, package.wheel.filename)
    return _Unit(package, path, package.wheel.size)


def _tasks(
    units: list[_Unit], python: str, cache: Path
) -> Iterator[tuple[str, Callable[[], Layer | None]]]:
    """What is to be made, in the order of the layers."""
    ranked = sorted(units, key=lambda unit: (-unit.size, unit.package.name))
    large = [unit for unit in ranked if unit.size >= LARGE][:MOST]
    rest = sorted((u for u in units if u not in large), key=lambda unit: unit.package.name)
    groups = [[unit] for unit in large]
    groups.append([unit for unit in rest if not isinstance(unit.source, Tree)])
    groups.append([unit for unit in rest if isinstance(unit.source, Tree)])
    groups = [group for group in groups if group]
    for group in groups:
        yield _title(group), _packer(group, python, cache)
    if _running() == python:
        for group in groups:
            yield f"bytecode of {_title(group)}", _compiler(group, python, cache)


def _packer(group: list[_Unit], python: str, cache: Path) -> Callable[[], Layer | None]:
    def pack() -> Layer:
        trees = [unit.source for unit in group if isinstance(unit.source, Tree)]
        if trees:
            return trees_layer(trees, python, cache=cache)
        wheels = [
            (unit.source, unit.package.wheel.sha256)
            for unit in group
            if isinstance(unit.source, Path) and unit.package.wheel
        ]
        if len(wheels) == 1:
            return wheel_layer(*wheels[0], python, cache=cache)
        return wheels_layer(wheels, python, cache=cache)

    return pack


def _compiler(group: list[_Unit], python: str, cache: Path) -> Callable[[], Layer | None]:
    def entries() -> Iterable[Entry]:
        found: dict[str, Entry] = {}
        for unit in group:
            found.update((entry.name, entry) for entry in unit.entries(python))
        return sources(found.values(), site_packages(python))

    def compile_all() -> Layer | None:
        return bytecode_layer(
            entries, [unit.key for unit in group], title=_title(group), cache=cache
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


def _title(group: list[_Unit]) -> str:
    if len(group) == 1:
        return f"{group[0].package.name} {group[0].package.version}"
    return f"{len(group)} packages"


def _running() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
