"""Metadata of local source that is installed in place, so that ``importlib.metadata`` finds it.

Editable installs: https://packaging.python.org/en/latest/specifications/direct-url/
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .bundle import File
from .modules import Module

_TRAVELS = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt")


def metadata_of(modules: list[Module]) -> Iterator[File]:
    """The metadata files of the editable installs that these local modules belong to."""
    roots = [path.resolve() for module in modules for path in _paths(module)]
    if not roots:
        return
    for info, project in _editables():
        if any(path.is_relative_to(project) for path in roots):
            yield from _files(info)
    tops = {module.name.partition(".")[0] for module in modules}
    for info in _egg_infos(modules):
        names = info / "top_level.txt"
        if names.is_file() and tops & set(names.read_text("utf-8", "replace").split()):
            yield from _files(info)


def _paths(module: Module) -> tuple[Path, ...]:
    return (module.file,) if module.file is not None else module.directories


def _files(info: Path) -> Iterator[File]:
    name = info.name
    for item in _TRAVELS:
        if (info / item).is_file():
            content = (info / item).read_bytes()
            yield File(f"{name}/{item}", content, f"metadata of the editable install {name}")


def _editables() -> Iterator[tuple[Path, Path]]:
    """``(dist-info, project directory)`` of every editable install on ``sys.path``."""
    for entry in dict.fromkeys(sys.path):
        directory = Path(entry or ".")
        for url in sorted(directory.glob("*.dist-info/direct_url.json")):
            try:
                value = json.loads(url.read_text("utf-8"))
                location = urlsplit(value["url"])
                editable = value["dir_info"]["editable"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if editable and location.scheme == "file":
                yield url.parent, Path(os.path.realpath(unquote(location.path)))


def _egg_infos(modules: list[Module]) -> Iterator[Path]:
    """``.egg-info`` beside top-level local modules (``setup.py develop``)."""
    roots = {
        path.parent
        for module in modules
        if "." not in module.name
        for path in (module.directories or _paths(module))
    }
    for root in sorted(roots):
        yield from sorted(root.glob("*.egg-info"))
