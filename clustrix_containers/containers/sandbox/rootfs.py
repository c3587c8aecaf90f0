"""An unpacked image: each layer once, root file systems of hard links to them, code and call apart.

``layers/KEY`` is one layer of ours, or all layers of a foreign base; ``rootfs/KEY`` is a root
file system of hard links to those, without the layers of kind ``code`` and ``call``, which are
mounted into it. So a changed function unpacks only its code layer, and a second project that
uses numpy unpacks none of it. A directory is filled under a temporary name and renamed; a lock
keeps two processes from filling it at once. Keys are derived from the ordered diff ids.
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

from clustrix_containers.containers.container import Mount
from clustrix_containers.errors import ImageError
from clustrix_containers.oci.model import Image, Layer
from clustrix_containers.oci.unpack import unpack
from clustrix_containers.storage.locks import locked
from clustrix_containers.worker import contract

FORMAT = "2"
"""Changes when the same layers are unpacked differently."""

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
    """The root file system of an image on this machine, and what is to be mounted into it."""

    root: Path
    mounts: tuple[Mount, ...]


def prepare(image: Image, cache: Path) -> Unpacked:
    """Unpack what is not unpacked yet. The blobs of the layers must be files of this machine.

    ``ImageError`` if a layer is missing, does not match its diff id, or has paths outside of it.
    """
    mounted = tuple(image.kinds(contract.LAYER_KIND, "code", "call"))
    rest = [layer for layer in image.layers if layer not in mounted]
    root = _directory(cache / "rootfs", rest, lambda target: _assemble(target, rest, cache))
    mounts = []
    for kind, target in (("code", contract.CODE), ("call", contract.CALL)):
        if layers := tuple(image.kinds(contract.LAYER_KIND, kind)):
            source = _unpacked(layers, cache) / target[1:]
            if not source.is_dir():
                raise ImageError(f"the {kind} layer of {image.digest} has no directory {target}")
            mounts.append(Mount(str(source), target))
    return Unpacked(root, tuple(mounts))


def prune(cache: Path, older_than: float) -> None:
    """Remove what has not been used for ``older_than`` seconds. Nothing may be running."""
    oldest = time.time() - older_than
    for path in (*cache.glob("rootfs/*"), *cache.glob("layers/*")):
        if path.is_dir() and path.stat().st_mtime < oldest:
            # Renamed first, so that nobody uses one that is half removed.
            removed = path.rename(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
            shutil.rmtree(removed, ignore_errors=True)


def _units(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """What is unpacked together: the base, which may have whiteouts; each layer of ours alone."""
    kinds = [it.descriptor.annotations.get(contract.LAYER_KIND, "base") for it in layers]
    base = next((index for index, kind in enumerate(kinds) if kind != "base"), len(layers))
    if "base" in kinds[base:]:
        return [tuple(layers)]
    units = (tuple(layers[:base]), *((layer,) for layer in layers[base:]))
    return [unit for unit in units if unit]


def _assemble(root: Path, layers: Sequence[Layer], cache: Path) -> None:
    """Fill a root file system with hard links to the unpacked layers."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for tree in list(pool.map(lambda unit: _unpacked(unit, cache), _units(layers))):
            _link(str(tree), str(root))
    _add_mount_points(root)
    _sync(root)


def _unpacked(layers: Sequence[Layer], cache: Path) -> Path:
    def fill(target: Path) -> None:
        for layer in layers:
            unpack(layer, target)

    return _directory(cache / "layers", layers, fill)


def _link(source: str, target: str) -> None:
    """Add a tree to another one by hard links; existing files are replaced."""
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
    """Mounts for the host's name resolution, where the root has the files."""
    for name in HOST_FILES:
        if os.path.isfile(name) and (root / name[1:]).is_file():
            yield Mount(os.path.realpath(name), name)


def _directory(parent: Path, layers: Sequence[Layer], fill: Callable[[Path], None]) -> Path:
    """The directory of these layers; created by ``fill`` if it does not exist."""
    names = "\n".join([FORMAT, *(layer.diff_id for layer in layers)])
    key = hashlib.sha256(names.encode()).hexdigest()
    final = parent / key
    if _used(final):
        return final
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(parent / f".{key}.lock"):
        if _used(final):
            return final
        for abandoned in parent.glob(f".{key}.*.tmp"):
            shutil.rmtree(abandoned)
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
    """Whether it exists; records the use for ``prune``."""
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
            # Often a link into /run, which is empty here.
            path.unlink(missing_ok=True)
            path.touch()


def _sync(directory: Path) -> None:
    """Write the files to disk before the rename that makes them count."""
    import ctypes

    file = os.open(directory, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(file)
    finally:
        os.close(file)
