"""Where a module's files are: found as the import system finds them, without running any."""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import sysconfig
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from clustrix_containers.capture.elf import read_elf
from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Platform

from . import syntax

_SITE = re.compile(r"(?:.*/)?(?:site|dist)-packages(?:/(.*))?", re.DOTALL)
OURS = frozenset({"clustrix_containers", "cloudpickle"})
"""In every image; never a dependency, never local source."""

ModuleKind = Literal["stdlib", "local", "installed", "ours", "missing"]


@dataclass(frozen=True, slots=True)
class Module:
    """A module on disk.

    ``file`` is its source or extension (``None`` for a namespace package), ``directories``
    the search path of a package (empty for a plain module).
    """

    name: str
    kind: ModuleKind
    file: Path | None = None
    directories: tuple[Path, ...] = ()

    @property
    def package(self) -> bool:
        return bool(self.directories)

    @property
    def path(self) -> str:
        """Its path relative to the code root: from its name, wherever it is here."""
        base = self.name.replace(".", "/")
        if self.file is None:
            return base
        if self.package:
            return f"{base}/{self.file.name}"
        # Everything from the first dot on: .py, .cpython-311-x86_64-linux-gnu.so, .abi3.so
        return f"{base}{self.file.name[self.file.name.index('.') :]}"


class Finder:
    """Finds modules. Caches results, so that one capture sees one state."""

    def __init__(self) -> None:
        importlib.invalidate_caches()
        self._found: dict[str, Module] = {}

    def find(self, name: str) -> Module:
        """The module of that dotted name; kind ``missing`` if there is none."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Module:
        top = name.partition(".")[0]
        if top in OURS:
            return Module(name, "ours")
        loaded = sys.modules.get(name)
        if isinstance(loaded, ModuleType):
            spec = getattr(loaded, "__spec__", None)
            origin = getattr(loaded, "__file__", None) or getattr(spec, "origin", None)
            found = _on_disk(name, origin, getattr(loaded, "__path__", None))
            if found.kind != "missing":
                return found
        parent, _, leaf = name.rpartition(".")
        above = self.find(parent) if parent else None
        if above is not None and above.kind in ("stdlib", "missing"):
            return Module(name, above.kind)
        if above is not None and not above.directories:
            # A module that acts as a package (six.moves): its submodules come with it.
            return Module(name, above.kind if above.kind == "installed" else "missing")
        return self._search(name, leaf, above)

    def _search(self, name: str, leaf: str, above: Module | None) -> Module:
        path = None if above is None else [str(directory) for directory in above.directories]
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is None:
                continue
            try:
                spec = find_spec(name, path)
            except (KeyError, ImportError, AttributeError, ValueError):
                # KeyError: a nested namespace package whose parent is not loaded.
                continue
            if spec is not None:
                return self._from_spec(name, spec)
        # A namespace package in a package that is not loaded.
        below = [str(directory / leaf) for directory in (above.directories if above else ())]
        return _on_disk(name, None, below)

    def _from_spec(self, name: str, spec: Any) -> Module:
        found = _on_disk(name, spec.origin, spec.submodule_search_locations)
        file = found.file
        if found.kind != "local" or not found.package or file is None or file.suffix != ".py":
            return found
        if not syntax.parse(file.read_bytes(), str(file)).extends_path:
            return found
        # The directories that pkgutil.extend_path would add.
        parent, _, leaf = name.rpartition(".")
        roots = self.find(parent).directories if parent else map(Path, sys.path)
        more = (absolute(root) / leaf for root in roots)
        directories = [*found.directories, *(path for path in more if path.is_dir())]
        return replace(found, directories=tuple(dict.fromkeys(directories)))


def absolute(path: str | Path) -> Path:
    """An absolute path without ``..``; symbolic links stay, as in ``__file__``."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def is_extension(path: Path) -> bool:
    """Whether a file is a compiled module, for any platform and version of Python."""
    return path.name.endswith((".so", ".pyd"))


def check_extension(path: Path, module: str, platform: Platform) -> None:
    """Raise a CaptureError naming ``module`` unless the compiled ``path`` runs on ``platform``."""
    elf = read_elf(path)
    if elf is not None and elf.architecture == platform.architecture:
        return
    wrong = f"is for {elf.architecture}, the image is for {platform}" if elf else "is not for Linux"
    raise CaptureError(
        f"the compiled module {module} ({path.name}) {wrong}",
        hint=f"Build it for {platform} and this Python, put it in a package that has a wheel, "
        "or do not import it.",
        module=module,
        path=str(path),
    )


def refuse_other_builds(module: str, directories: tuple[Path, ...], platform: Platform) -> None:
    """Raise a CaptureError if ``module`` exists compiled, but not for this Python."""
    leaf = module.rpartition(".")[2]
    for directory in filter(Path.is_dir, directories):
        for path in sorted(directory.glob(f"{leaf}.*")):
            if is_extension(path):
                tags = ", ".join(importlib.machinery.EXTENSION_SUFFIXES)
                raise CaptureError(
                    f"the compiled module {module} exists only as {path.name}, which the "
                    f"image's Python on {platform} does not load",
                    hint=f"Build it for this Python (its file ends in one of {tags}).",
                    module=module,
                    path=str(path),
                )


def _on_disk(name: str, origin: Any, locations: Any) -> Module:
    """The module of a file and search path as its spec, or the loaded module, has them."""
    if origin in ("built-in", "frozen"):
        return Module(name, "stdlib")
    directories = _directories(locations)
    file = absolute(origin) if isinstance(origin, str) else None
    file = file if file is not None and file.is_file() else None
    if file is None and not directories:
        return Module(name, "missing")
    return Module(name, _kind(file or directories[0]), file, directories)


def _directories(locations: Any) -> tuple[Path, ...]:
    if locations is None:
        return ()
    try:
        found = list(locations)
    except KeyError:
        found = list(getattr(locations, "_path", []))
    paths = dict.fromkeys(absolute(item) for item in found if isinstance(item, str))
    return tuple(path for path in paths if path.is_dir())


def _kind(path: Path) -> ModuleKind:
    if installed_path(path) is not None:
        return "installed"
    return "local" if stdlib_path(path) is None else "stdlib"


@lru_cache(maxsize=1)
def _stdlib_roots() -> tuple[str, ...]:
    roots = {Path(os.__file__).parent}
    roots.update(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    roots.update(root.resolve() for root in list(roots))
    return tuple(sorted(f"{root}{os.sep}" for root in roots))


def installed_path(path: Path) -> str | None:
    """A path relative to its site-packages directory; ``None`` if it is in none."""
    found = _SITE.fullmatch(path.as_posix())
    return found and (found[1] or "")


def stdlib_path(path: Path) -> str | None:
    """A path relative to the standard library; ``None`` if it is not in it."""
    for root in _stdlib_roots():
        if str(path).startswith(root):
            return Path(str(path)[len(root) :]).as_posix()
    return None
