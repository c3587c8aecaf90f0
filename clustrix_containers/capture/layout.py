"""The files of the code layer, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from clustrix_containers.oci import model as oci
from clustrix_containers.worker import contract

from .bundle import Bundle


def bundle_files(bundle: Bundle) -> Iterator[tuple[str, bytes | Path]]:
    """``(path, content)`` of every file of the code layer, sorted by path.

    Paths are POSIX and relative to :data:`contract.CODE`; a ``Path`` is a file here. Among
    them :data:`contract.ENTRY` and, by value, :data:`contract.FUNCTION`.
    """
    files: dict[str, bytes | Path] = {file.path: file.content for file in bundle.files}
    files[contract.ENTRY] = oci.canonical({"version": 1, **asdict(bundle.entry)})
    if bundle.function is not None:
        files[contract.FUNCTION] = bundle.function
    for path in sorted(files):
        yield path, files[path]
