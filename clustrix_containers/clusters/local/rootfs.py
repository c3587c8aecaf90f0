"""An image as directories: the root file system once, code and call beside it.

``rootfs/KEY`` holds all layers but those of kind ``code`` and ``call``, keyed by their ordered
diff ids; ``layers/KEY`` holds those of one of these kinds. So a changed function unpacks only
its code layer. An image without our annotations is unpacked whole. Every directory is made
under a temporary name and renamed; a lock keeps two processes from doing it twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clustrix_containers import contract
from clustrix_containers.errors import ImageError
from clustrix_containers.oci import Image, Layer

from .plan import Mount
from .unpack import unpack

FORMAT = "1"
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
    root = _directory(cache / "rootfs", rest, root=True)
    mounts = []
    for kind, target in (("code", contract.CODE), ("call", contract.CALL)):
        if apart[kind]:
            tree = _directory(cache / "layers", apart[kind], root=False)
            source = tree / target[1:]
            if not source.is_dir():
                raise ImageError(f"the {kind} layer of {image.digest} has nothing in {target}")
            mounts.append(Mount(str(source), target))
    return Unpacked(root, tuple(mounts))


def host_files(root: Path) -> Iterator[Mount]:
    """The host's name resolution, where the root has a place for it."""
    for name in HOST_FILES:
        if os.path.isfile(name) and (root / name[1:]).is_file():
            yield Mount(os.path.realpath(name), name)


def _directory(parent: Path, layers: Sequence[Layer], *, root: bool) -> Path:
    """The directory with these layers' files; made if it is not there."""
    names = "\n".join([FORMAT, *(layer.diff_id for layer in layers)])
    key = hashlib.sha256(names.encode()).hexdigest()
    final = parent / key
    if final.is_dir():
        return final
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(parent / f".{key}.lock"):
        if final.is_dir():
            return final
        for left in parent.glob(f".{key}.*.tmp"):
            shutil.rmtree(left)
        temporary = parent / f".{key}.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            for layer in layers:
                unpack(layer, temporary)
            if root:
                _add_mount_points(temporary)
                _sync(temporary)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
