"""Bytecode in layers of its own: without it every run spends seconds on compiling.

Separate from the wheels' layers, whose digests do not depend on the Python version.
Unchecked-hash ``.pyc`` files (PEP 552) contain no times, and loading them does not read the
source. They are made once per machine, off the hot path, in processes without the user's hash
seed and modules.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, EntryType, Member, write_layer
from clustrix_containers.oci.model import Layer
from clustrix_containers.oci.store import cache_key, cached_layers

_SKIPPED = frozenset({"test", "tests", "__pycache__", "lib2to3"})


def _sources(entries: Iterable[Entry], below: str) -> list[Entry]:
    return [
        entry
        for entry in entries
        if entry.type is EntryType.FILE
        and entry.name.startswith(below + "/")
        and entry.name.endswith(".py")
        and not _SKIPPED.intersection(entry.name[len(below) + 1 :].split("/")[:-1])
        and not isinstance(entry.content, bytes)
    ]


def bytecode_layer(
    entries: Callable[[], Iterable[Entry]],
    below: str,
    key: object,
    *,
    title: str,
    cache: Path,
) -> Layer | None:
    """One layer with what :func:`compiled` makes; ``None`` if there is nothing to compile.

    ``key`` (a JSON value) identifies the entries: the layer is made once for it and the running
    Python's minor version, and only then ``entries`` is called.
    """

    def make() -> Iterator[Layer]:
        if made := compiled(entries(), below):
            yield write_layer(
                made, cache=cache, form="isal", kind="bytecode", title=f"bytecode of {title}"
            )

    name = cache_key("bytecode", sys.implementation.cache_tag, key)
    return next(iter(cached_layers(cache, name, make)), None)


def compiled(entries: Iterable[Entry], below: str) -> list[Entry]:
    """The ``__pycache__`` entries of the modules that are imported from ``below``, without test suites.

    Sources are files or members of wheels.
    """
    sources = _sources(entries, below)
    workers = min(os.cpu_count() or 1, 1 + len(sources) // 50)
    # Interleaved, so that each process gets about the same amount.
    shares = [sources[at::workers] for at in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        return [entry for result in pool.map(_compile, shares) for entry in result]


def _compile(entries: Sequence[Entry]) -> list[Entry]:
    script = Path(__file__).with_name("compile.py")
    command = [sys.executable, "-S", "-s", "-B", "-W", "ignore", str(script)]
    # Sets of strings among the constants are written in hash order before Python 3.11.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONHASHSEED"] = "0"
    done = subprocess.run(
        command,
        input=json.dumps([_item(entry) for entry in entries]).encode(),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise ImageError(
            "bytecode could not be compiled: "
            + done.stderr.decode("utf-8", "replace").strip()[-500:]
        )
    made, at = [], 0
    for entry in entries:
        (size,) = struct.unpack_from("<I", done.stdout, at)
        at += 4
        if size:
            folder, _, name = entry.name.rpartition("/")
            pyc = f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
            made.append(Entry(f"{folder}/__pycache__/{pyc}", done.stdout[at : at + size]))
        at += size
    return made


def _item(entry: Entry) -> tuple[str, int, int, bool, str]:
    content = entry.content
    if isinstance(content, Member):
        where = (str(content.path), content.offset, content.deflated, not content.stored)
    else:
        where = (str(content), 0, -1, False)
    return (*where, f"/{entry.name}")
