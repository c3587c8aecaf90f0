"""Results on a volume: files in a directory of the run, where the client sees them, too.

The container writes the result and then its mark, each under a name of its contents, at once or
not at all. What this machine sees of a shared file system may be late.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

from clustrix_containers.errors import ClusterError, ResultError

from .arrival import arrive
from .inline import Absent, Stored
from .outcome import MARK_LIMIT, Mark, parse_mark

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """Where results go: below ``path`` of a volume ``claim``.

    ``mount`` is where this machine has the root of the same volume, if it has it.
    """

    claim: str
    path: str = ""
    mount: str | None = None

    def __post_init__(self) -> None:
        name = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
        if not isinstance(self.claim, str) or not re.fullmatch(name, self.claim):
            raise ClusterError(
                f"results: volume: claim is {self.claim!r}, which is no name of a volume claim",
                hint="`kubectl get pvc` lists the names.",
                option="results",
            )
        if ".." in PurePosixPath(str(self.path)).parts or "\0" in str(self.path):
            raise ClusterError(
                f"results: volume: path is {self.path!r}",
                hint="It is a directory below the root of the volume, without '..'.",
                option="results",
            )

        if self.mount is not None and not Path(str(self.mount)).expanduser().is_absolute():
            raise ClusterError(
                f"results: volume: mount is {self.mount!r}, which is not an absolute path",
                hint="It is where this machine has the root of the volume.",
                option="results",
            )

    def directory(self, root: str, run: str) -> PurePosixPath:
        """The directory of a run, where the volume's root is ``root``."""
        parts = [part for part in PurePosixPath(str(self.path)).parts if part != "/"]
        return PurePosixPath(root, *parts, run)


def mounted(options: Options, run: str) -> Path | None:
    """The directory of a run as this machine sees it; ``None`` without ``mount``.

    ``ClusterError`` if nothing is there.
    """
    if options.mount is None:
        return None
    root = Path(options.mount).expanduser()
    if not root.is_dir():
        raise ClusterError(
            f"results: volume: mount is {options.mount}, and there is no such directory here",
            hint=f"Mount the file system of the claim {options.claim} there, or leave `mount:` out:"
            " then a pod reads the results for you.",
            option="results",
        )
    return Path(options.directory(str(root), run))


def fetch(
    place: Path,
    run: str,
    stored: Stored | None,
    element: int,
    attempt: int,
    directory: Path,
    *,
    key: bytes,
) -> bool:
    """Bring an outcome from ``place`` into ``directory``; False if it is not to be seen there.

    ``stored`` is what the termination message said; without it (its pod is gone) the marks of
    this element and attempt are looked at: what succeeded comes before what failed, then the
    oldest. ``ResultError`` if none of them is the run's, ``ClusterError`` if they cannot be read.
    """
    names = [stored.mark] if stored else _marks(place, element, attempt)
    found: list[tuple[bool, float, bytes]] = []
    refused: ResultError | None = None
    for name in names:
        try:
            data = b"".join(_pieces(place / name, MARK_LIMIT))
            mark = parse_mark(data, key=key, run=run, element=element, attempt=attempt)
        except Absent:
            continue
        except ResultError as error:
            refused = error
            continue
        found.append((mark.outcome != "ok", mark.ended, data))
    if not found and refused is not None:
        raise refused

    def result(mark: Mark) -> Iterator[bytes]:
        return _pieces(place / f"{element}.{attempt}.{mark.sha256[:16]}.result", mark.size)

    for _, _, data in sorted(found):
        with contextlib.suppress(Absent):
            arrive(directory, element, attempt, data, result, key=key, run=run)
            return True
    return False


def _marks(place: Path, element: int, attempt: int) -> list[str]:
    pattern = rf"{element}\.{attempt}\.[0-9a-f]{{16}}\.mark"
    with contextlib.suppress(Absent), _reading(place):
        return [path.name for path in place.iterdir() if re.fullmatch(pattern, path.name)]
    return []


def _pieces(path: Path, largest: int) -> Iterator[bytes]:
    with _reading(path):
        file = _open(path)
    size = 0
    with file:
        while True:
            with _reading(path):
                piece = file.read(_PIECE)
            if not piece:
                return
            size += len(piece)
            if size > largest:
                raise ResultError(f"{path} has more bytes than its worker wrote")
            yield piece


def _open(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0, opener=_no_follow)
    except FileNotFoundError:
        # What is seen of a directory that has just been listed is not older than the list.
        for _ in path.parent.iterdir():
            break
        return open(path, "rb", buffering=0, opener=_no_follow)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Absent(f"{path} is not there") from None
    except (PermissionError, NotADirectoryError) as error:
        raise ClusterError(
            f"the results cannot be read: {error}",
            hint="They are as open to others as the directory that the run's lies in.",
        ) from error
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error}", temporary=True) from error
