"""What has no wheel is packed from its installed files: their actual bytes, with a new RECORD.

Scripts are made again from the entry points, or get the image's shebang; what names this machine
(``direct_url.json``, editable finders, bytecode) stays behind.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, arrange, write_layer
from clustrix_containers.oci.model import Layer
from clustrix_containers.oci.store import cache_key, recall, remember
from clustrix_containers.packages.records import (
    read_record,
    record_entry,
    reshebanged,
    script_entries,
    site_packages,
)
from clustrix_containers.packages.wheelfile import INSTALLER
from clustrix_containers.worker.contract import VENV

_LEFT = frozenset(
    {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "RECORD.jws", "RECORD.p7s"}
)


@dataclass(frozen=True, slots=True)
class Tree:
    """An installed distribution: name, version, its metadata directory (or file, ``.egg-info``)."""

    name: str
    version: str
    info: Path

    @property
    def location(self) -> Path:
        return self.info.parent

    def files(self) -> list[tuple[str, Path]]:
        """Path relative to the location (``..`` for scripts and data) and the file, sorted."""
        rows = read_record(self.info)
        if rows is None:
            return sorted(set(_unrecorded(self)))
        found = []
        for name in sorted(rows):
            if name.endswith((".pyc", ".pyo")) or "__pycache__" in name or not _travels(name):
                continue
            path = self.location / name
            if path.is_file():
                found.append((name, path))
            elif not name.startswith(".."):
                raise ImageError(
                    f"{self.name} {self.version} is not whole: {name!r} is missing",
                    hint=f"pip install --force-reinstall {self.name}=={self.version}",
                    distribution=self.name,
                )
        return found

    def fingerprint(self) -> str:
        """A cheap value that changes when a file of it changes here: sizes and times."""
        seen = hashlib.sha256()
        for name, path in self.files():
            stat = path.stat()
            seen.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode())
        return seen.hexdigest()


def find_tree(name: str, version: str, paths: Iterable[str]) -> Tree:
    """The installed distribution of this name and version on ``paths``; ImageError if there is none."""
    wanted, versions = _plain(name), []
    for place in paths:
        try:
            names = os.listdir(place)  # noqa: PTH208
        except OSError:
            continue
        for info in names:
            stem, dot, kind = info.rpartition(".")
            if kind not in ("dist-info", "egg-info") or not dot:
                continue
            own, _, rest = stem.partition("-")
            if _plain(own) == wanted:
                own_version = rest.split("-")[0]
                if _plain(own_version) == _plain(version) or not own_version:
                    return Tree(name, version, Path(place, info))
                versions.append(own_version)
    other = f"; {versions[0]} is" if versions else ""
    raise ImageError(
        f"{name} {version} of the lock is not installed here{other}",
        hint=f"pip install {name}=={version}, or lock again.",
        distribution=name,
    )


def tree_entries(tree: Tree, python: str) -> list[Entry]:
    """What an installed distribution puts into ``/opt/venv`` of a Python ``X.Y``."""
    site = site_packages(python)
    points = tree.info / "entry_points.txt"
    generated = list(script_entries(points.read_text("utf-8"))) if points.is_file() else []
    made = {entry.name for entry in generated}
    entries = list(generated)
    for name, path in tree.files():
        target = _target(name, site)
        if target is None or target in made:
            continue
        executable = os.access(path, os.X_OK)
        content: bytes | Path = path
        if target.startswith(f"{VENV[1:]}/bin/"):
            with path.open("rb") as file:
                if file.read(2) == b"#!":
                    content = reshebanged(path.read_bytes())
        entries.append(Entry(target, content, 0o755 if executable else 0o644))
    if not tree.info.is_dir():
        return arrange(entries, owned=())
    info = f"{site}/{tree.info.name}"
    entries.append(Entry(f"{info}/INSTALLER", INSTALLER))
    entries = arrange(entries, owned=())
    if tree.info.suffix == ".dist-info":
        entries.append(record_entry(info, entries, {}, site))
    return entries


def trees_layer(trees: Sequence[Tree], python: str, *, cache: Path) -> Layer:
    """One layer of installed distributions; made again when a file of theirs has changed."""
    key = cache_key(
        "trees", [[tree.name, tree.version, tree.fingerprint()] for tree in trees], python
    )
    known = recall(cache, key)
    if known:
        return known[0]
    entries: dict[str, Entry] = {}
    for tree in trees:
        for entry in tree_entries(tree, python):
            entries[entry.name] = entry
    title = ", ".join(f"{tree.name} {tree.version}" for tree in trees)
    layer = write_layer(
        entries.values(),
        cache=cache,
        form="isal",
        kind="wheel" if len(trees) == 1 else "packages",
        title=title,
        created_by=f"clustrix: installed {title}",
    )
    remember(cache, key, [layer])
    return layer


def _travels(name: str) -> bool:
    path = PurePosixPath(name)
    if path.name in _LEFT and path.parent.name.endswith(".dist-info"):
        return False
    return not path.name.startswith("__editable__")


def _target(name: str, site: str) -> str | None:
    """Where a file goes; ``None`` for one that is outside the environment it was installed into."""
    normal = os.path.normpath(name)
    if not normal.startswith(".."):
        return None if os.path.isabs(normal) else f"{site}/{normal}"  # noqa: PTH117
    # ../../../bin/x of lib/pythonX.Y/site-packages, ../../../usr/bin/x elsewhere: below the prefix.
    parts = normal.split("/")
    rest = [part for part in parts if part != ".."]
    if rest[0] not in ("bin", "share", "etc", "include", "man", "local"):
        return None
    return f"{VENV[1:]}/{'/'.join(rest)}"


def _unrecorded(tree: Tree) -> Iterator[tuple[str, Path]]:
    """Distributions of a system's packages have no RECORD: their top-level modules, whole."""
    tops = [tree.name.replace("-", "_")]
    listing = tree.info / "top_level.txt"
    if listing.is_file():
        tops = listing.read_text("utf-8").split()
    found = False
    for top in tops:
        package, module = tree.location / top, tree.location / f"{top}.py"
        if package.is_dir():
            found = True
            yield from _below(package, tree.location)
        for path in [module, *tree.location.glob(f"{top}.*.so")]:
            if path.is_file():
                found = True
                yield path.name, path
    if not found:
        raise ImageError(
            f"nothing says which files {tree.name} {tree.version} has",
            hint=f"Install it with pip: pip install {tree.name}=={tree.version}",
            distribution=tree.name,
        )
    if tree.info.is_dir():
        yield from (pair for pair in _below(tree.info, tree.location) if _travels(pair[0]))
    else:
        yield tree.info.name, tree.info


def _below(top: Path, location: Path) -> Iterator[tuple[str, Path]]:
    from .interpreter import walk

    for path in walk(top):
        if path.suffix != ".pyc":
            yield path.relative_to(location).as_posix(), path


def _plain(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()
