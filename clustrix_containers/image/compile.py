"""A script, run in processes of its own: compiles sources to unchecked-hash ``.pyc`` files (PEP 552).

Standard library only. Reads a JSON list from standard input::

    [[path, offset, size, deflated, name in the image], …]

(``size`` bytes at ``offset`` of the file ``path``; -1: all of it). For each item it writes a
length (little-endian u32) and the ``.pyc``, which is empty if the source does not compile
(templates, code for other versions).

Marshal's version 2 writes no references between objects. Later versions write them depending on
reference counts, which differ from process to process. Constants that version 2 does not know
(slices, from Python 3.14 on) are written by the newest version after one round trip, so that the
counts are those of the stream itself.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import struct
import sys
import zlib
from pathlib import Path


def pyc(source: bytes, name: str) -> bytes:
    """The ``.pyc`` of a source whose path in the image is ``name``; empty if it does not compile."""
    try:
        code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return b""
    try:
        body = marshal.dumps(code, 2)
    except ValueError:
        body = marshal.dumps(marshal.loads(marshal.dumps(code)))  # noqa: S302
    return (
        importlib.util.MAGIC_NUMBER
        + struct.pack("<I", 1)
        + importlib.util.source_hash(source)
        + body
    )


def main() -> None:
    for path, offset, size, deflated, name in json.load(sys.stdin):
        with Path(path).open("rb") as file:
            file.seek(offset)
            source = file.read(size)
        result = pyc(zlib.decompress(source, -15) if deflated else source, name)
        sys.stdout.buffer.write(struct.pack("<I", len(result)) + result)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
