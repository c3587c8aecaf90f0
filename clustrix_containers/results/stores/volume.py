"""Results on a volume: files in a directory of the run, where the client may see them, too.

The container writes the result and then its mark, each under a name of its contents, whole or
not at all. This machine may see files of a shared file system late.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from clustrix_containers.errors import ClusterError, ResultError
from clustrix_containers.results.delivery import Absent, Stored
from clustrix_containers.results.directory import arrive
from clustrix_containers.results.outcome import MARK_LIMIT, Expected, Mark, parse_mark
from clustrix_containers.storage.untrusted import no_follow

from . import invalid

MOUNT_PATH = "/opt/clustrix/volume"
"""Where a container has the root of the volume."""
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class VolumeStore:
    """Below ``path`` of a volume ``claim``.

    ``mount`` is where this machine has the root of the same volume, if it has it.
    """

    claim: str
    path: str = ""
    mount: str | None = None
    kind: ClassVar[str] = "volume"

    def __post_init__(self) -> None:
        name = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
        if not isinstance(self.claim, str) or not re.fullmatch(name, self.claim):
            raise invalid(
                f"volume: claim {self.claim!r} is not a valid name of a volume claim",
                "`kubectl get pvc` lists the names.",
            )
        if ".." in PurePosixPath(str(self.path)).parts or "\0" in str(self.path):
            raise invalid(
                f"volume: path {self.path!r} is not valid",
                "Expected a directory below the root of the volume, without '..'.",
            )
        if self.mount is not None and not Path(str(self.mount)).expanduser().is_absolute():
            raise invalid(
                f"volume: mount {self.mount!r} is not an absolute path",
                "Expected the directory where this machine has the root of the volume.",
            )

    def directory(self, root: str, run: str) -> PurePosixPath:
        """The directory of a run, where the volume's root is ``root``."""
        parts = [part for part in PurePosixPath(str(self.path)).parts if part != "/"]
        return PurePosixPath(root, *parts, run)

    def mounted(self, run: str) -> Path | None:
        """The directory of a run as this machine sees it; ``None`` without ``mount``.

        ``ClusterError`` if nothing is mounted.
        """
        if self.mount is None:
            return None
        root = Path(self.mount).expanduser()
        if not root.is_dir():
            raise invalid(
                f"volume: mount {self.mount}: no such directory",
                f"Mount the file system of the claim {self.claim} there, or leave `mount:` out:"
                " then a pod reads the results for you.",
            )
        return Path(self.directory(str(root), run))

    def open(self, run: str, image: str, seconds: float) -> Mapping[str, Any]:  # noqa: ARG002
        path = self.directory(MOUNT_PATH, run)
        return {"kind": self.kind, "path": str(path), "claim": self.claim}

    def fetch(self, expected: Expected, stored: Stored | None, image: str) -> bool:  # noqa: ARG002
        """As all stores; without ``stored`` what succeeded comes before what failed, then the oldest.

        False also for what was named and is not visible here (yet).
        """
        place = self.mounted(expected.run)
        if place is None:
            raise invalid(
                f"volume: this machine does not have the claim {self.claim}",
                "Say with `mount:` where it has the root of the volume.",
            )
        return fetch(place, expected, stored)

    def describe(self) -> str:
        where = self.directory("", "RUN")
        how = f"are read below {self.mount}" if self.mount else "a pod reads them for you"
        return f"larger ones stay on the volume claim {self.claim} in {where}, and {how}"


def fetch(place: Path, expected: Expected, stored: Stored | None) -> bool:
    """Bring an outcome from the directory ``place``; see :meth:`VolumeStore.fetch`."""
    found: list[tuple[bool, float, bytes]] = []
    refused: ResultError | None = None
    for name in [stored.mark] if stored else _marks(place, expected):
        try:
            data = b"".join(_pieces(place / name, MARK_LIMIT))
            mark = parse_mark(data, expected)
        except Absent:
            continue
        except ResultError as error:
            refused = error
            continue
        found.append((mark.outcome != "ok", mark.ended, data))
    if not found and refused is not None:
        raise refused

    def result(mark: Mark) -> Iterator[bytes]:
        return _pieces(place / mark.result_name, mark.size)

    for _, _, data in sorted(found):
        with contextlib.suppress(Absent):
            arrive(expected, data, result)
            return True
    return False


def _marks(place: Path, expected: Expected) -> list[str]:
    with contextlib.suppress(Absent), _reading(place):
        return [path.name for path in place.iterdir() if expected.is_mark(path.name)]
    return []


def _pieces(path: Path, largest: int) -> Iterator[bytes]:
    size = 0
    with _reading(path), _open(path) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            if size > largest:
                raise ResultError(f"{path} has more bytes than its worker wrote")
            yield piece


def _open(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0, opener=no_follow)
    except FileNotFoundError:
        # After a listing, an NFS client's view of a directory is not older than that.
        for _ in path.parent.iterdir():
            break
        return open(path, "rb", buffering=0, opener=no_follow)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Absent(f"{path} was not found") from None
    except (PermissionError, NotADirectoryError) as error:
        raise ClusterError(
            f"the results cannot be read: {error}",
            hint="They are readable by whom the directory above the run's is readable.",
        ) from error
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error}", temporary=True) from error
