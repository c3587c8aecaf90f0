"""RECORD files and entry points of installed distributions and wheels.

Formats: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
and https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, content_size, read_content
from clustrix_containers.worker.contract import VENV

PYTHON = f"{VENV}/bin/python"
"""The shebang of every script in an image."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a RECORD: the hash as written (``sha256=…`` or empty) and the size, if given."""

    hash: str
    size: int | None

    @property
    def sha256(self) -> str | None:
        """The sha256 in hex, if that is the hash's kind."""
        kind, _, value = self.hash.partition("=")
        if kind != "sha256":
            return None
        try:
            return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
        except ValueError:
            return None


def parse_record(text: str) -> dict[str, Row]:
    """Path -> row. Lines that are no rows are an ImageError."""
    rows: dict[str, Row] = {}
    try:
        for line in csv.reader(io.StringIO(text, newline="")):
            if line:
                size = line[2] if len(line) > 2 else ""
                rows[line[0].replace("\\", "/")] = Row(
                    line[1] if len(line) > 1 else "", int(size) if size.strip() else None
                )
    except (csv.Error, ValueError) as error:
        raise ImageError(f"a RECORD cannot be read: {error}") from error
    return rows


def read_record(info: Path) -> dict[str, Row] | None:
    """The RECORD of an installed distribution's ``.dist-info``; ``None`` where it has none."""
    try:
        return parse_record((info / "RECORD").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def site_packages(python: str) -> str:
    """Where distributions lie in the image, for a Python ``X.Y``; without a leading slash."""
    return f"{VENV[1:]}/lib/python{python}/site-packages"


def record_entry(info: str, entries: Iterable[Entry], known: Mapping[str, str], site: str) -> Entry:
    """The RECORD of these entries. ``info`` is the ``.dist-info`` in the image.

    ``known`` has the sha256 (hex) of the entries whose bytes need not be read again.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for entry in sorted(entries, key=lambda entry: entry.name):
        digest, size = known.get(entry.name), content_size(entry.content)
        if digest is None:
            sha, size = hashlib.sha256(), 0
            for piece in read_content(entry.content):
                sha.update(piece)
                size += len(piece)
            digest = sha.hexdigest()
        encoded = base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()
        writer.writerow((posixpath.relpath(entry.name, site), f"sha256={encoded}", size))
    writer.writerow((posixpath.relpath(f"{info}/RECORD", site), "", ""))
    return Entry(f"{info}/RECORD", out.getvalue().encode())


def script_entries(text: str) -> Iterator[Entry]:
    """The console and gui scripts that an ``entry_points.txt`` asks for."""
    from configparser import ConfigParser, Error

    parser = ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    try:
        parser.read_string(text)
    except Error as error:
        raise ImageError(f"entry_points.txt cannot be read: {error}") from error
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            for name, value in parser.items(section):
                yield Entry(f"{VENV[1:]}/bin/{name}", _script(name, value), 0o755)


def reshebanged(content: bytes) -> bytes:
    """A script with its first line pointing at the image's Python, if it points at some Python."""
    first, newline, rest = content.partition(b"\n")
    words = first[2:].split(maxsplit=1)
    if not (first.startswith(b"#!") and words and b"python" in words[0].split(b"/")[-1]):
        return content
    # Without its options, as pip and installer do.
    return b"#!" + PYTHON.encode() + newline + rest


def _script(name: str, value: str) -> bytes:
    module, _, attributes = value.partition("[")[0].strip().partition(":")
    module, attributes = module.strip(), attributes.strip()
    parts = [*module.split("."), *(attributes.split(".") if attributes else [])]
    if not attributes or not all(part.isidentifier() for part in parts) or "/" in name:
        raise ImageError(f"not an entry point: {name} = {value}")
    return (
        f"#!{PYTHON}\n"
        "import sys\n"
        f"from {module} import {attributes.split('.')[0]}\n"
        'if __name__ == "__main__":\n'
        f"    sys.exit({attributes}())\n"
    ).encode()
