"""Layers as deterministic tar archives (POSIX ustar; pax records only where ustar does not suffice).

Entries are sorted by name; modification times, user and group ids are 0; modes are 0644, 0755 or
(``/tmp``) 1777. Only directories below :data:`OWNED` get entries as parents: one for ``/opt`` or
``/tmp`` would replace the base's.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from clustrix_containers.errors import ImageError
from clustrix_containers.worker.contract import LAYER_KIND, LAYER_TITLE

from .gzip import Isal, Spliced, Stored
from .model import LAYER_GZIP, Descriptor, Layer
from .store import BlobWriter

Form = Literal["stored", "spliced", "isal"]

OWNED = ("opt/venv", "opt/python", "opt/clustrix")
"""Directories at and below which parents get entries; ``("",)`` for a base, which owns its root."""

IN_MEMORY = 4 << 20
"""Stored layers of up to this many bytes are kept in memory, not in a file."""

_FORMS: dict[Form, Any] = {"stored": Stored, "spliced": Spliced, "isal": Isal}
_CHUNK = 1 << 20
_PIECE = 1 << 17
_MODES = (0o644, 0o755, 0o1777)
_OCTAL_LIMIT = 8**11


class EntryType(enum.Enum):
    """The type of an entry; the value is tar's type flag."""

    FILE = b"0"
    LINK = b"2"
    DIRECTORY = b"5"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive, deflated or ``stored``: ``deflated`` bytes at ``offset``.

    ``size`` (bytes), ``crc`` and ``sha256`` (hex, optional) are of the inflated file, and checked
    while it is copied.
    """

    path: Path
    offset: int
    deflated: int
    size: int
    crc: int
    sha256: str | None = None
    stored: bool = False


Content = bytes | Path | Member


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive. ``name`` is relative, with ``/``; ``target`` a symbolic link's."""

    name: str
    content: Content = b""
    mode: int = 0o644
    type: EntryType = EntryType.FILE
    target: str = ""


def directory(name: str, mode: int = 0o755) -> Entry:
    """An entry for a directory."""
    return Entry(name, mode=mode, type=EntryType.DIRECTORY)


def link(name: str, target: str) -> Entry:
    """An entry for a symbolic link."""
    return Entry(name, mode=0o755, type=EntryType.LINK, target=target)


def write_layer(
    entries: Iterable[Entry],
    *,
    cache: Path,
    form: Form,
    kind: str,
    title: str,
    created_by: str = "",
    owned: tuple[str, ...] = OWNED,
    in_memory: int = IN_MEMORY,
    annotations: Mapping[str, str] | None = None,
) -> Layer:
    """Write one layer in one pass; its blob is in the cache, or in memory when stored and small.

    ``annotations`` are added to those of its descriptor. Raises ImageError for a name that is
    absolute, contains ``..`` or NUL, or occurs twice with different contents.
    """
    arranged = arrange(entries, owned)
    diff = hashlib.sha256()
    with BlobWriter(cache, spill=in_memory if form == "stored" else 0) as blob:
        out = _FORMS[form](blob)

        def write(data: bytes) -> None:
            diff.update(data)
            out.write(data)

        for entry in arranged:
            size = content_size(entry.content) if entry.type is EntryType.FILE else 0
            write(header(entry.name, entry.mode, size, entry.type, entry.target))
            if size:
                _write_content(entry, size, diff, out)
                write(b"\0" * (-size % 512))
        write(b"\0" * 1024)
        out.close()
        digest, content = blob.commit()
    notes = {LAYER_KIND: kind, LAYER_TITLE: title, **(annotations or {})}
    descriptor = Descriptor(LAYER_GZIP, digest, blob.size, notes)
    diff_id = "sha256:" + diff.hexdigest()
    return Layer(descriptor, diff_id, content, None, created_by or f"clustrix: {title}")


def arrange(entries: Iterable[Entry], owned: tuple[str, ...] = OWNED) -> list[Entry]:
    """The entries sorted, without duplicates, with their parent directories below ``owned``."""
    found: dict[str, Entry] = {}
    for entry in entries:
        check_name(entry.name)
        if entry.mode not in _MODES:
            raise ImageError(f"unsupported mode {entry.mode:o} of {entry.name!r}")
        other = found.setdefault(entry.name, entry)
        if other is not entry and not _equal(other, entry):
            raise ImageError(
                f"two different files are called {entry.name!r}",
                hint="Leave one of them out, or rename it.",
                name=entry.name,
            )
    for name in list(found):
        for parent in accumulate(name.split("/")[:-1], "{}/{}".format):
            if not any(not top or f"{parent}/".startswith(f"{top}/") for top in owned):
                continue
            if parent not in found:
                found[parent] = directory(parent)
            elif found[parent].type is not EntryType.DIRECTORY:
                raise ImageError(f"{parent!r} is not a directory, and {name!r} is in it")
    return [found[name] for name in sorted(found, key=str.encode)]


def check_name(name: str) -> None:
    """Raise an ImageError unless the name is relative and stays below the root."""
    parts = name.split("/")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError(f"the file name {name!r} is not UTF-8", hint="Rename it.") from None
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ImageError(f"not a name for a file in an image: {name!r}", name=name)
    if parts[-1].startswith(".wh."):
        raise ImageError(
            f"the file {name!r} cannot be in a layer: the prefix .wh. marks deletions there",
            hint="Rename it.",
        )


def header(
    name: str, mode: int, size: int, kind: EntryType = EntryType.FILE, target: str = ""
) -> bytes:
    """The header block or blocks of one entry."""
    full = name + "/" if kind is EntryType.DIRECTORY else name
    pax: dict[str, str] = {}
    split = _split(full)
    if split is None:
        pax["path"] = full
        split = (b"", full.encode("ascii", "replace")[:100])
    short = target.encode("ascii", "replace")
    if not target.isascii() or len(short) > 100:
        pax["linkpath"] = target
    if size >= _OCTAL_LIMIT:
        pax["size"] = str(size)
    block = _block(split, mode, 0 if "size" in pax else size, kind.value, short[:100])
    return _pax(pax) + block if pax else block


def content_size(content: Content) -> int:
    """Bytes of the file when it is unpacked."""
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, Member):
        return content.size
    try:
        return content.stat().st_size
    except OSError as error:
        raise _unreadable(content, error) from error


def read_content(content: Content) -> Iterator[bytes]:
    """The file's bytes, in pieces."""
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Member):
        for _, plain in inflate(content, content.path.name):
            yield plain
    else:
        try:
            with content.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise _unreadable(content, error) from error


def inflate(member: Member, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of raw and inflated pieces; ImageError if the stream is damaged or not as declared."""
    from isal import isal_zlib
    from isal.igzip_lib import IsalError

    inflater: Any = None if member.stored else isal_zlib.decompressobj(-15)
    crc = size = 0
    digest = hashlib.sha256() if member.sha256 else None
    left = member.deflated
    try:
        with member.path.open("rb") as file:
            file.seek(member.offset)
            while left and (raw := file.read(min(_PIECE, left))):
                left -= len(raw)
                plain = inflater.decompress(raw) if inflater else raw
                crc = isal_zlib.crc32(plain, crc)
                size += len(plain)
                if size > member.size:
                    break
                if digest:
                    digest.update(plain)
                yield raw, plain
    except (IsalError, OSError) as error:  # type: ignore[misc]
        raise ImageError(f"{member.path.name}: {name!r} cannot be inflated: {error}") from error
    ragged = left or (inflater and (not inflater.eof or inflater.unused_data))
    if size <= member.size and ragged:
        raise ImageError(f"{member.path.name}: {name!r} does not end where the archive declares")
    if (crc, size) != (member.crc, member.size):
        raise ImageError(f"{member.path.name}: {name!r} has a wrong checksum or size")
    if digest and digest.hexdigest() != member.sha256:
        raise ImageError(f"{member.path.name}: {name!r} is not what RECORD says")


def _write_content(entry: Entry, size: int, diff: Any, out: Any) -> None:
    content, written = entry.content, 0
    if isinstance(content, Member) and not content.stored and isinstance(out, Spliced):

        def raw() -> Iterator[bytes]:
            for piece, plain in inflate(content, entry.name):
                diff.update(plain)
                yield piece

        out.member(raw(), content.crc, content.size)
        return
    for plain in read_content(content):
        written += len(plain)
        diff.update(plain)
        out.write(plain)
    if written != size:
        raise ImageError(
            f"{entry.name!r} changed while it was packed", hint="Try again.", name=entry.name
        )


def _equal(one: Entry, two: Entry) -> bool:
    return one == two or (
        replace(one, content=b"") == replace(two, content=b"")
        and content_size(one.content) == content_size(two.content)
        and b"".join(read_content(one.content)) == b"".join(read_content(two.content))
    )


def _split(name: str) -> tuple[bytes, bytes] | None:
    """Prefix and name of a ustar header, or ``None`` where it cannot hold the name."""
    if not name.isascii():
        return None
    raw = name.encode()
    if len(raw) <= 100:
        return b"", raw
    # Never split at a directory's trailing slash.
    at = raw.find(b"/", len(raw) - 101, len(raw) - 1)
    return (raw[:at], raw[at + 1 :]) if 1 <= at <= 155 else None


def _pax(records: dict[str, str]) -> bytes:
    body = b"".join(_pax_record(key, value) for key, value in sorted(records.items()))
    block = _block((b"", b"././@PaxHeader"), 0o644, len(body), b"x", b"")
    return block + body + b"\0" * (-len(body) % 512)


def _pax_record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    size = len(rest)
    # The length counts its own digits.
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return str(size).encode() + rest


def _block(split: tuple[bytes, bytes], mode: int, size: int, kind: bytes, target: bytes) -> bytes:
    prefix, name = split
    zero = b"0000000\0"
    head = b"%s%07o\0%s%s%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, zero, zero, size, 0)
    tail = b"%s%sustar\00000%s%s%s%s" % (
        kind,
        target.ljust(100, b"\0"),
        b"\0" * 64,
        zero,
        zero,
        prefix.ljust(155, b"\0") + b"\0" * 12,
    )
    checksum = sum(head) + sum(tail) + 8 * 32
    return head + b"%06o\0 " % checksum + tail


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"cannot read {str(path)!r}: {error.strerror or error}", path=str(path))
