"""The values that capture produces, and the files of the code layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clustrix_containers.oci import model as oci
from clustrix_containers.worker import contract


@dataclass(frozen=True, slots=True)
class Entry:
    """How the worker finds the callable; see ``contract`` for the JSON form."""

    kind: Literal["module", "script", "value"]
    module: str
    qualname: str
    name: str
    script: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """One file of the code layer: ``path`` is POSIX and relative to :data:`contract.CODE`."""

    path: str
    content: bytes | Path
    reason: str


@dataclass(frozen=True, slots=True)
class Import:
    """A third-party module that the code reaches.

    ``module`` is the dotted name as imported (``sklearn.datasets``), ``where`` the
    place (``digits.py:3``), ``chain`` the local modules through which it was reached,
    outermost first. ``optional`` marks an import inside ``try``/``except ImportError``.
    """

    module: str
    where: str
    chain: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """An import or name that could not be resolved statically, and how to declare it."""

    where: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A captured callable: how to find it, the local files and the imports that it reaches.

    ``function`` is the normalised pickle of a callable that travels by value, else ``None``.
    ``main`` is the path of the script (``__main__``) that the callable or its types belong to.
    """

    entry: Entry
    files: tuple[File, ...]
    imports: tuple[Import, ...]
    notes: tuple[Note, ...] = ()
    function: bytes | None = None
    main: Path | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution that goes into the image, and why.

    ``name`` is normalised (PEP 503). ``reasons`` are sentences, best first:
    ``digits.py:3 imports sklearn.datasets`` or ``scikit-learn 1.7 requires numpy>=1.22``.
    ``location`` is the directory that its RECORD is relative to; ``info`` its ``.dist-info``.
    """

    name: str
    version: str
    reasons: tuple[str, ...]
    location: Path
    info: Path


def bundle_files(bundle: Bundle) -> Iterator[tuple[str, bytes | Path]]:
    """``(path, content)`` of every file of the code layer, sorted by path.

    Among them are :data:`contract.ENTRY` and, by value, :data:`contract.FUNCTION`.
    """
    files: dict[str, bytes | Path] = {file.path: file.content for file in bundle.files}
    files[contract.ENTRY] = oci.canonical({"version": 1, **asdict(bundle.entry)})
    if bundle.function is not None:
        files[contract.FUNCTION] = bundle.function
    for path in sorted(files):
        yield path, files[path]
