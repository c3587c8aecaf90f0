"""What is installed here: the distributions on ``sys.path``.

Read straight from the ``.dist-info`` directories, lazily: one directory listing per
entry of the path, ``RECORD`` when a module is looked up, ``METADATA`` only of what is
reached. ``importlib.metadata`` reads the same files, at several times the cost.
Formats: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
and https://packaging.python.org/en/latest/specifications/core-metadata/
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.packages.wheels.wheel import RecordRow, parse_record

_SUFFIXES = (b".py", b".so", b".pyc")
_HEADER = re.compile(r"^(\S[^:\n]*):(.*(?:\n[ \t].*)*)", re.M)
"""A header field of METADATA; a line that begins with white space continues the one before."""


@dataclass(frozen=True)
class Installed:
    """One installed distribution.

    ``info`` is its ``.dist-info`` directory, or for a distribution from before wheels its
    ``.egg-info`` (a directory or a single file), ``EGG-INFO`` or ``.egg-link``; ``name`` is
    normalised. ``path_version`` is the version in the directory's name, which may spell it
    differently from ``version``.
    """

    name: str
    path_version: str
    info: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @classmethod
    def of(cls, distribution: Distribution) -> Installed:
        """The installed distribution that a captured one names."""
        return cls(distribution.name, distribution.version, distribution.info)

    @property
    def root(self) -> Path:
        """The directory that it is installed in; paths in its RECORD are relative to it."""
        return self.info.parent

    def read_text(self, name: str) -> str:
        """A file of its metadata, or an empty string if it has none of that name."""
        try:
            return (self.info / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def _headers(self) -> tuple[tuple[str, str], ...]:
        for path in (self.info / "METADATA", self.info / "PKG-INFO", self.info):
            if path.is_file():
                headers = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
                fields = _HEADER.findall(headers)
                return tuple((name.strip().lower(), value.strip()) for name, value in fields)
        return ()

    def _all(self, key: str) -> tuple[str, ...]:
        return tuple(value for name, value in self._headers if name == key)

    @cached_property
    def version(self) -> str:
        """The version as the metadata spells it (``2.1.0+cpu``)."""
        return next(iter(self._all("version")), self.path_version)

    @cached_property
    def parsed_version(self) -> Version | None:
        """The version to compare; ``None`` if it is malformed."""
        try:
            return Version(self.version)
        except InvalidVersion:
            return None

    @cached_property
    def requires(self) -> tuple[str, ...]:
        """Its requirements (PEP 508), unparsed, in the metadata's order."""
        declared = self._all("requires-dist")
        if not declared and (self.info / "requires.txt").is_file():
            from importlib.metadata import PathDistribution

            # setuptools' own form, with sections for markers and extras.
            return tuple(PathDistribution(self.info).requires or ())
        return declared

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The extras that it declares, normalised."""
        return tuple(canonicalize_name(extra) for extra in self._all("provides-extra"))

    @cached_property
    def installer(self) -> str:
        """The tool that installed it (``pip``, ``uv``, ``conda``), or an empty string."""
        return self.read_text("INSTALLER").strip()

    @cached_property
    def editable(self) -> bool:
        """Whether it is an editable install: local source, which is sent as such."""
        if self.info.suffix == ".egg-link":
            return True
        packaged = self.root.name in ("site-packages", "dist-packages")
        if self.info.suffix == ".egg-info" and not self.path_version and not packaged:
            return True  # the metadata of a source tree
        return bool(self.direct_url.get("dir_info", {}).get("editable"))

    @cached_property
    def direct_url(self) -> dict[str, Any]:
        """``direct_url.json`` (PEP 610): empty for what was installed from an index."""
        try:
            document = json.loads((self.info / "direct_url.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    @cached_property
    def recorded(self) -> bool:
        """Whether it has a RECORD."""
        return (self.info / "RECORD").is_file()

    @cached_property
    def record(self) -> bytes:
        """Its RECORD with a newline before it; without one, the paths below its top-level names."""
        if self.recorded:
            return b"\n" + (self.info / "RECORD").read_bytes()
        return os.fsencode("".join(f"\n{path},," for path in sorted(self._walk())))

    @cached_property
    def rows(self) -> dict[str, RecordRow]:
        """Its files; without hashes and sizes if it has no RECORD. ImageError: a malformed RECORD."""
        if self.recorded:
            return parse_record(self.record[1:].decode("utf-8", "surrogateescape"))
        return {path: RecordRow("", None) for path in sorted(self._walk())}

    @cached_property
    def tops(self) -> frozenset[bytes]:
        """The first components of its files' paths (``sklearn``, ``six.py``, ``..``)."""
        if self.recorded:
            heads = {line.split(b"/", 1)[0] for line in self.record.splitlines()}
            return frozenset(head.split(b",", 1)[0] for head in heads)
        return frozenset(os.fsencode(name) for name in self._top_entries())

    def _top_entries(self) -> Iterator[str]:
        """Names in ``root`` of what it installed, by ``top_level.txt`` or else by its own name."""
        listed = self.read_text("top_level.txt")
        guessed = [self.name.replace("-", "_"), self.name.replace("-", ".")]
        for name in dict.fromkeys(listed.split() if listed else guessed):
            yield from _entries(self.root).get(name, ())

    def _walk(self) -> Iterator[str]:
        for name in self._top_entries():
            yield from _files_below(self.root, name)
        if self.info.parent == self.root:
            yield from _files_below(self.root, self.info.name)


def _entries(root: Path) -> dict[str, list[str]]:
    """Importable names of a directory, each with the entries that provide it."""
    found: dict[str, list[str]] = {}
    for entry in sorted(path.name for path in root.iterdir()):
        if entry.endswith((".py", ".so")) or "." not in entry:
            found.setdefault(entry.split(".", 1)[0], []).append(entry)
    return found


def _files_below(root: Path, name: str) -> Iterator[str]:
    path = root / name
    if path.is_file():
        yield name
    for directory, subdirectories, files in os.walk(path):
        subdirectories[:] = set(subdirectories) - {"__pycache__"}
        relative = os.path.relpath(directory, root)
        yield from (f"{relative}/{file}" for file in files)


class SearchPath:
    """The distributions of one search path. Use :func:`search_path`, which caches them."""

    def __init__(self, path: Sequence[str]) -> None:
        self.roots = {entry: tuple(_scan(entry)) for entry in path}
        self.by_name: dict[str, Installed] = {}
        for root in self.roots.values():
            for distribution in root:
                known = self.by_name.setdefault(distribution.name, distribution)
                # The same source tree may be on the path beside its editable install.
                if known.editable and distribution.info.suffix == ".dist-info":
                    self.by_name[distribution.name] = distribution

    def find(self, module: str) -> tuple[tuple[Installed, ...], Path | None]:
        """The owners of a dotted module (which may name an attribute at its end), or its unowned file.

        The first entry of the path with a regular package or module of that name wins,
        as in an import; in it, the owners of the longest part of the dotted name. A
        namespace package belongs to all that have a part of it.
        """
        parts = module.split(".")
        spread: list[Installed] = []
        for entry in self.roots:
            regular, portions = self._in_entry(entry, parts)
            if regular:
                return regular, None
            spread += portions
            if not portions and (unowned := _module_file(entry, parts[0])):
                return (), unowned
        return tuple(dict.fromkeys(spread)), None

    def _in_entry(
        self, entry: str, parts: Sequence[str]
    ) -> tuple[tuple[Installed, ...], list[Installed]]:
        """Owners of the longest regular part of a module; owners of the whole as a namespace."""
        candidates = list(self._candidates(entry, parts[0]))
        for length in range(len(parts), 0, -1):
            suffix = os.fsencode("/".join(parts[:length]))
            owners = tuple(d for d, prefix in candidates if _has(d.record, prefix + suffix))
            if owners:
                return owners, []
        whole = os.fsencode("/".join(parts))
        return (), [d for d, prefix in candidates if b"\n" + prefix + whole + b"/" in d.record]

    def _candidates(self, entry: str, top: str) -> Iterator[tuple[Installed, bytes]]:
        """Distributions with files at ``entry/top``; the bytes are ``entry`` relative to their root."""
        name = os.fsencode(top)
        for root, distributions in self.roots.items():
            if root == entry:
                for d in distributions:
                    if any(t == name or t.startswith(name + b".") for t in d.tops):
                        yield d, b""
            elif entry.startswith(root.rstrip("/") + "/"):
                # A .pth file put a directory inside the root on the path (pywin32 does).
                prefix = os.fsencode(os.path.relpath(entry, root)) + b"/"
                head = prefix.split(b"/", 1)[0]
                yield from ((d, prefix) for d in distributions if head in d.tops)


def _has(record: bytes, path: bytes) -> bool:
    """Whether a RECORD has a package or a module at this path (without suffix)."""
    for start in (b"\n" + path + b"/__init__.", b"\n" + path + b"."):
        at = record.find(start)
        while at >= 0:
            end = record.find(b",", at + 1)
            line = record[at + 1 : end]
            if line.endswith(_SUFFIXES) and b"/" not in line[len(path) + 1 :]:
                return True
            at = record.find(start, at + 1)
    return False


def _module_file(entry: str, top: str) -> Path | None:
    paths = (Path(entry, f"{top}.py"), Path(entry, top, "__init__.py"))
    return next((path for path in paths if path.is_file()), None)


def _scan(entry: str) -> Iterator[Installed]:
    """The distributions whose metadata is directly in one directory, by name."""
    root = Path(entry)
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError:
        return
    found: dict[str, list[Installed]] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("dist-info", "egg-info", "egg-link", "EGG-INFO") or name[0] == "~":
            continue
        info = root / name
        if suffix == "dist-info" and not (info / "METADATA").is_file():
            continue  # what an interrupted uninstall leaves behind
        if not dot:
            stem = root.name.removesuffix(".egg")
        title, _, rest = stem.partition("-")
        version = re.sub(r"-py\d+(\.\d+)?(-.*)?\Z", "", rest)
        installed = Installed(canonicalize_name(title), version, info)
        found.setdefault(installed.name, []).append(installed)
    for candidates in found.values():
        yield candidates[0] if len(candidates) == 1 else _best(candidates)


def _best(candidates: Iterable[Installed]) -> Installed:
    """Of several metadata directories of one name: the one with a RECORD, then the newest."""

    def rank(d: Installed) -> tuple[bool, bool, Version, str]:
        version = d.parsed_version or Version("0")
        return d.recorded, d.info.suffix == ".dist-info", version, d.info.name

    return max(candidates, key=rank)


def search_path(path: Sequence[str] | None = None) -> SearchPath:
    """A search path (default: ``sys.path``), scanned again when an entry's mtime changes."""
    entries = [os.path.abspath(entry) for entry in (sys.path if path is None else path)]  # noqa: PTH100
    return _scanned(tuple((entry, _mtime(entry)) for entry in dict.fromkeys(entries)))


def _mtime(entry: str) -> int:
    try:
        return os.stat(entry).st_mtime_ns  # noqa: PTH116
    except OSError:
        return -1


@lru_cache(maxsize=8)
def _scanned(entries: tuple[tuple[str, int], ...]) -> SearchPath:
    return SearchPath([entry for entry, mtime in entries if mtime >= 0])
