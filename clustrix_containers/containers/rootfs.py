"""An image as directories: each layer once, roots of hard links to them, code and call beside.

``layers/KEY`` holds one layer of ours, or all layers of a foreign base; ``rootfs/KEY`` is a root
file system of hard links to those, without the layers of kind ``code`` and ``call``, which are
bound into it. So a changed function unpacks only its code layer, and a second project that uses
numpy unpacks none of it. Every directory is made under a temporary name and renamed; a lock
keeps two processes from doing it twice. Keys are of the ordered diff ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.storage.locks import locked
from clustrix_containers.worker import contract

from .container import Mount

FORMAT = "2"
"""Changes when unpacking gives something else for the same layers."""

MOUNT_POINTS = (
    "proc",
    "dev",
    "tmp",
    contract.CODE[1:],
    contract.CALL[1:],
    contract.RESULTS[1:],
    contract.RUN[1:],
)
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Where an image lies on this machine, and what is to be bound into its root."""

    root: Path
    mounts: tuple[Mount, ...]


def prepare(image: Image, cache: Path) -> Unpacked:
    """Unpack what is not there yet. Layers need blobs that are files of this machine.

    ``ImageError`` if a layer is missing, is not what its diff id says, or leaves its place.
    """
    apart = {kind: tuple(image.kinds(contract.LAYER_KIND, kind)) for kind in ("code", "call")}
    rest = [layer for layer in image.layers if layer not in (*apart["code"], *apart["call"])]
    root = _directory(cache / "rootfs", rest, lambda place: _assemble(place, rest, cache))
    mounts = []
    for kind, target in (("code", contract.CODE), ("call", contract.CALL)):
        if apart[kind]:
            source = _unpacked(apart[kind], cache) / target[1:]
            if not source.is_dir():
                raise ImageError(f"the {kind} layer of {image.digest} has nothing in {target}")
            mounts.append(Mount(str(source), target))
    return Unpacked(root, tuple(mounts))


def prune(cache: Path, older_than: float) -> None:
    """Remove what has not been used for ``older_than`` seconds. Nothing may be running."""
    oldest = time.time() - older_than
    for parent in (cache / "rootfs", cache / "layers"):
        for path in sorted(parent.glob("*")) if parent.is_dir() else ():
            if path.is_dir() and path.stat().st_mtime < oldest:
                doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _units(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """What is unpacked by itself: the base, which may have whiteouts, then each layer of ours."""
    ours = [
        layer.descriptor.annotations.get(contract.LAYER_KIND, "base") != "base" for layer in layers
    ]
    first = ours.index(True) if True in ours else len(ours)
    if not all(ours[first:]):
        return [tuple(layers)]
    return [
        unit for unit in (tuple(layers[:first]), *((layer,) for layer in layers[first:])) if unit
    ]


def _assemble(place: Path, layers: Sequence[Layer], cache: Path) -> None:
    """A root file system at ``place``, of hard links to the unpacked layers."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for tree in list(pool.map(lambda unit: _unpacked(unit, cache), _units(layers))):
            _link(str(tree), str(place))
    _add_mount_points(place)
    _sync(place)


def _unpacked(layers: Sequence[Layer], cache: Path) -> Path:
    def fill(place: Path) -> None:
        for layer in layers:
            unpack(layer, place)

    return _directory(cache / "layers", layers, fill)


def _link(source: str, target: str) -> None:
    """Add a tree to another one by hard links; what is there already is replaced."""
    with os.scandir(source) as entries:
        for entry in entries:
            to = f"{target}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(to)
                _link(entry.path, to)
                shutil.copystat(entry.path, to)
            else:
                try:
                    os.link(entry.path, to, follow_symlinks=False)
                except FileExistsError:
                    os.unlink(to)
                    os.link(entry.path, to, follow_symlinks=False)


def host_files(root: Path) -> Iterator[Mount]:
    """The host's name resolution, where the root has a place for it."""
    for name in HOST_FILES:
        if os.path.isfile(name) and (root / name[1:]).is_file():
            yield Mount(os.path.realpath(name), name)


def _directory(parent: Path, layers: Sequence[Layer], fill: Callable[[Path], None]) -> Path:
    """The directory for these layers; made by ``fill`` if it is not there."""
    names = "\n".join([FORMAT, *(layer.diff_id for layer in layers)])
    key = hashlib.sha256(names.encode()).hexdigest()
    final = parent / key
    if _used(final):
        return final
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(parent / f".{key}.lock"):
        if _used(final):
            return final
        for left in parent.glob(f".{key}.*.tmp"):
            shutil.rmtree(left)
        temporary = parent / f".{key}.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            fill(temporary)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def _used(directory: Path) -> bool:
    """Whether it is there; remembers the use for ``prune``."""
    try:
        os.utime(directory)
    except FileNotFoundError:
        return False
    return True


def _add_mount_points(root: Path) -> None:
    for name in MOUNT_POINTS:
        path = root / name
        if path.is_symlink():
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
    for name in HOST_FILES:
        path = root / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.exists():
            # Often a link into /run, which is not there.
            path.unlink(missing_ok=True)
            path.touch()


def _sync(directory: Path) -> None:
    """Have the files on disk before the name that says that they are there."""
    import ctypes

    file = os.open(directory, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(file)
    finally:
        os.close(file)
