"""Unpacks a layer: nothing gets outside the destination, whatever the archive says.

Layer format: https://github.com/opencontainers/image-spec/blob/main/layer.md (whiteouts).
Owners are dropped, modes are made readable, since containers run under any user.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from clustrix_containers import oci
from clustrix_containers.errors import ImageError
from clustrix_containers.oci import Layer

_GZIP = (oci.LAYER_GZIP, oci.DOCKER_LAYER)
_LINKS = 40


def unpack(layer: Layer, destination: Path) -> None:
    """Apply a layer to a directory. ``ImageError`` if it breaks a rule or its diff id."""
    if not isinstance(layer.blob, Path) or not layer.blob.is_file():
        raise ImageError(
            f"the layer {layer.digest} is not on this machine",
            hint="Pull the image into a layout first: the local target runs what lies here.",
        )
    digest = hashlib.sha256()
    try:
        with _open(layer, layer.blob) as stream:
            reader = _Hashing(stream, digest)
            with tarfile.open(fileobj=reader, mode="r|", errorlevel=2) as archive:
                for member in archive:
                    _place(archive, member, destination)
            while reader.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise ImageError(f"the layer {layer.digest} cannot be unpacked: {error}") from error
    if f"sha256:{digest.hexdigest()}" != layer.diff_id:
        raise ImageError(f"the layer {layer.digest} does not hold what its diff id says")


class _Hashing(io.RawIOBase):
    def __init__(self, stream: IO[bytes], digest: hashlib._Hash) -> None:
        self._stream = stream
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data


@contextlib.contextmanager
def _open(layer: Layer, blob: Path) -> Iterator[IO[bytes]]:
    kind = layer.descriptor.media_type
    if kind == oci.LAYER_TAR:
        with blob.open("rb") as file:
            yield file
    elif kind in _GZIP:
        with gzip.open(blob, "rb") as stream:
            yield cast("IO[bytes]", stream)
    else:
        raise ImageError(f"the layer {layer.digest} is of the type {kind}, which is not supported")


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = _inside(root, member.name)
    if path == root:
        return
    name = path.name
    if name == ".wh..wh..opq":
        for child in path.parent.iterdir():
            _remove(child)
        return
    if name.startswith(".wh."):
        _remove(path.with_name(name[4:]))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            _remove(path)
            path.mkdir()
        path.chmod(_readable(member.mode) | 0o700)
    elif member.isreg():
        _remove(path)
        source = archive.extractfile(member)
        assert source is not None
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        path.chmod(_readable(member.mode))
        # Bytecode is only believed if its source has the time that it was made from.
        os.utime(path, (member.mtime, member.mtime))
    elif member.issym():
        _remove(path)
        path.symlink_to(member.linkname)
    elif member.islnk():
        source_path = _inside(root, member.linkname)
        _remove(path)
        os.link(source_path, path, follow_symlinks=False)
    # Devices and FIFOs: the container gets its own /dev.


def _inside(root: Path, name: str) -> Path:
    """The path below ``root`` for an entry; its parents' links are followed as if root were /."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise ImageError(f"a layer wants to write outside the root: {name!r}")
    if not parts:
        return root
    path, todo, links = root, parts[:-1], 0
    while todo:
        part, todo = todo[0], todo[1:]
        if part == "..":
            path = path.parent if path != root else root
            continue
        path = path / part
        if path.is_symlink():
            links += 1
            if links > _LINKS:
                raise ImageError(f"a layer has a circle of links at {name!r}")
            target = str(path.readlink())
            path = root if target.startswith("/") else path.parent
            todo = [part for part in target.split("/") if part not in ("", ".")] + todo
    return path / parts[-1]


def _readable(mode: int) -> int:
    """What the owner may read and execute, everybody may."""
    owner = mode & 0o500
    return (mode & 0o755) | owner >> 3 | owner >> 6 | 0o400


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
