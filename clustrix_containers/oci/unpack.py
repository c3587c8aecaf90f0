"""Applies a layer to a directory, and never writes outside it.

Semantics: https://github.com/opencontainers/image-spec/blob/main/layer.md (whiteouts, hard links,
later entries replace earlier ones). Symbolic links on the way to an entry are followed as in a
container: an absolute target starts at the root directory, and nothing climbs above it.
The digests of the blob and of the tar are checked in the same pass, after files were written: unpack
into a temporary directory, and rename it on success.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustrix_containers.errors import DigestMismatch, ImageError

from .model import Layer
from .reading import HashingReader, open_blob, open_layer, open_tar

_CHUNK = 1 << 20
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_MAX_LINKS = 40


def unpack(layer: Layer, destination: Path) -> None:
    """Apply a layer to ``destination``, on top of earlier layers.

    Owners, set-user-id bits, device nodes and pipes are left out. Raises ImageError, naming the
    layer and the offending entry, and DigestMismatch for a blob or tar with other bytes than the
    layer's.
    """
    with open_blob(layer) as blob:
        source = HashingReader(blob, layer.digest)
        plain = open_layer(source, layer.digest)
        target = _Target(destination, layer.digest)
        try:
            with open_tar(plain, layer) as archive:
                for member in archive:
                    target.apply(member, archive)
            target.finish()
        except OSError as error:
            raise ImageError(f"layer {layer.digest} cannot be unpacked: {error}") from error
        while source.read(_CHUNK):
            pass
    for what, expected, found in (
        ("blob", layer.digest, source.digest),
        ("tar", layer.diff_id, plain.digest),
    ):
        if expected != found:
            raise DigestMismatch(
                f"the {what} of layer {layer.digest} has the digest {found}, expected {expected}",
                hint="It was truncated or changed: fetch or build the image again.",
                layer=layer.digest,
            )


class _Target:
    """A root directory that a layer is applied to."""

    def __init__(self, root: Path, layer: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = os.path.realpath(root)
        self._layer = layer
        self._folders: dict[str, str] = {}
        self._modes: dict[str, int] = {}
        self._written: set[str] = set()

    def apply(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = member.name.removeprefix("./").rstrip("/")
        if name in ("", "."):
            return
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name + member.linkname:
            raise self._refused(member.name, "its name leads out of the root")
        folder = self._folder("/".join(parts[:-1]), member.name)
        last = parts[-1]
        if last == _OPAQUE:
            self._clear(folder)
        elif last.startswith(_WHITEOUT):
            if last[len(_WHITEOUT) :] in ("", ".", ".."):
                raise self._refused(member.name, "whiteout without a file name")
            self._remove_existing(os.path.join(folder, last[len(_WHITEOUT) :]))  # noqa: PTH118
        else:
            self._write(os.path.join(folder, last), member, archive)  # noqa: PTH118

    def finish(self) -> None:
        """Set the modes of directories last, since a read-only one cannot be filled."""
        for path, mode in sorted(self._modes.items(), reverse=True):
            os.chmod(path, mode)  # noqa: PTH101

    def _write(self, path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        if member.isdir():
            if not (os.path.isdir(path) and not os.path.islink(path)):  # noqa: PTH112, PTH114
                self._remove_existing(path)
                os.mkdir(path, 0o700)  # noqa: PTH102
            self._modes[path] = member.mode & 0o1777 | 0o700
        elif member.isreg():
            self._remove_existing(path)
            source = archive.extractfile(member)
            assert source is not None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123
                shutil.copyfileobj(source, file, _CHUNK)
                file.flush()
                os.fchmod(file.fileno(), member.mode & 0o1777 | 0o400)
                # Bytecode is used only if its source has the time that it was compiled from.
                os.utime(file.fileno(), (member.mtime, member.mtime))
        elif member.issym():
            self._remove_existing(path)
            Path(path).symlink_to(member.linkname)
        elif member.islnk():
            self._hard_link(path, member)
        elif member.ischr() or member.isblk() or member.isfifo():
            return
        else:
            raise self._refused(member.name, f"unknown entry type {member.type!r}")
        self._written.add(path)

    def _hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        name = member.linkname.removeprefix("./").lstrip("/")
        parts = name.split("/")
        if ".." in parts or not name:
            raise self._refused(member.name, "its hard link leads out of the root")
        folder = self._folder("/".join(parts[:-1]), member.name)
        source = os.path.join(folder, parts[-1])  # noqa: PTH118
        if source == path:
            return
        try:
            kind = os.lstat(source).st_mode
        except FileNotFoundError:
            raise self._refused(member.name, "hard link to a file that does not exist") from None
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
            raise self._refused(member.name, "hard link to something other than a file")
        self._remove_existing(path)
        os.link(source, path, follow_symlinks=False)

    def _folder(self, name: str, entry: str) -> str:
        """The real directory for a name in the layer; created if it does not exist."""
        known = self._folders.get(name)
        if known is not None:
            return known
        here, links = self._root, 0
        pending = [part for part in reversed(name.split("/")) if part]
        while pending:
            part = pending.pop()
            if part == "..":
                if here == self._root:
                    raise self._refused(entry, "a symbolic link in its path leads out of the root")
                here = os.path.dirname(here)  # noqa: PTH120
                continue
            path = os.path.join(here, part)  # noqa: PTH118
            try:
                kind = os.lstat(path).st_mode
            except FileNotFoundError:
                os.mkdir(path, 0o755)  # noqa: PTH102
                kind = stat.S_IFDIR
            if stat.S_ISLNK(kind):
                links += 1
                if links > _MAX_LINKS:
                    raise self._refused(entry, "too many levels of symbolic links")
                target = os.readlink(path)  # noqa: PTH115
                if target.startswith("/"):
                    here = self._root
                pending.extend(p for p in reversed(target.split("/")) if p not in ("", "."))
            elif stat.S_ISDIR(kind):
                here = path
            else:
                raise self._refused(entry, f"{part!r} in its path is not a directory")
        self._folders[name] = here
        return here

    def _remove_existing(self, path: str) -> None:
        """Remove what lower layers have at the path."""
        try:
            kind = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        # Cached directories may have been reached through this one.
        if stat.S_ISDIR(kind) or stat.S_ISLNK(kind):
            self._folders.clear()
        if stat.S_ISDIR(kind):
            _remove_tree(path)
            prefix = path + "/"
            self._modes = {
                name: mode
                for name, mode in self._modes.items()
                if not f"{name}/".startswith(prefix)
            }
        else:
            os.unlink(path)  # noqa: PTH108

    def _clear(self, folder: str) -> None:
        """An opaque directory: entries of lower layers go, those of this layer stay."""
        for name in os.listdir(folder):  # noqa: PTH208
            path = os.path.join(folder, name)  # noqa: PTH118
            if path in self._written:
                if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                    self._clear(path)
            else:
                self._remove_existing(path)

    def _refused(self, entry: str, reason: str) -> ImageError:
        return ImageError(
            f"layer {self._layer} is refused: {entry!r}: {reason}",
            hint="The image is broken or hostile; nothing was written outside its directory.",
            layer=self._layer,
            entry=entry,
        )


def _remove_tree(path: str) -> None:
    def make_writable(function: Callable[..., Any], name: str, _: Any) -> None:
        os.chmod(os.path.dirname(name), 0o700)  # noqa: PTH101, PTH120
        if os.path.isdir(name):  # noqa: PTH112
            os.chmod(name, 0o700)  # noqa: PTH101
        function(name)

    shutil.rmtree(path, onerror=make_writable)
