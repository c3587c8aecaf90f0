"""The wheels that installed distributions came from: found once, kept by content.

::

    CACHE/wheels/<sha256>/<filename>    wheel files
    CACHE/located/<key>.json            which of them a distribution came from, or why none is known
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import DependencyError, ImageError
from clustrix_containers.oci.model import canonical
from clustrix_containers.oci.store import cache_key
from clustrix_containers.packages.installed import Installed
from clustrix_containers.packages.lock import Package, Wheel
from clustrix_containers.remote.progress import Progress, silent
from clustrix_containers.storage import atomic

from .wheel import RecordRow, WheelFile, same_version, split_filename

if TYPE_CHECKING:
    from .index import Link, PackageIndexes

RETRY_AFTER = 24 * 3600.0
"""Seconds for which the indexes are not searched again for a wheel that they do not have."""

RETRY_OFFLINE_AFTER = 3600.0
"""Seconds for which they are not searched again when one did not respond."""

DOWNLOADS = 8
"""Wheels that are searched and downloaded side by side."""

MAX_CANDIDATES = 4
"""Wheels of one version that are downloaded and compared, at most."""


@dataclass(frozen=True, slots=True)
class Located:
    """``wheels`` by distribution name; for the others the ``reasons`` why there is none.

    What has no wheel is packed from its installed files.
    """

    wheels: dict[str, Wheel]
    reasons: dict[str, str]


def wheel_path(cache: Path, wheel: Wheel) -> Path:
    """The place of a wheel file in the cache."""
    return cache / "wheels" / wheel.sha256 / wheel.filename


def locate(
    distributions: Sequence[Distribution],
    *,
    cache: Path,
    fetch: bool = True,
    progress: Progress = silent,
) -> Located:
    """The wheel that each distribution was installed from, where one can be found.

    A wheel stands for an installed distribution only where its RECORD has the hashes of the
    installed RECORD, and those are the installed files'. It comes from the cache, else
    (``fetch``) from the indexes that the user has configured. Outcomes are remembered (that
    there is none for a day), so later calls read one small file per distribution. Never raises
    because a wheel is missing; ImageError: a malformed RECORD.
    """
    outcomes: dict[str, Wheel | str] = {}
    missing: dict[str, Installed] = {}
    for distribution in distributions:
        installed = Installed.of(distribution)
        outcome = _not_from_a_wheel(installed) or _recall(cache, key := _key(installed))
        if outcome is None:
            missing[key] = installed
        else:
            outcomes[installed.name] = outcome
    if missing:
        outcomes |= _search(missing, cache, fetch, progress)
    return Located(
        {name: found for name, found in outcomes.items() if isinstance(found, Wheel)},
        {name: found for name, found in outcomes.items() if isinstance(found, str)},
    )


def obtain(packages: Iterable[Package], *, cache: Path) -> None:
    """Bring the wheels of a lock into the cache; ImageError names one that cannot be downloaded."""
    missing = [
        (package, wheel)
        for package in packages
        if (wheel := package.wheel) and not wheel_path(cache, wheel).is_file()
    ]
    if not missing:
        return
    with _downloading(cache) as (download, indexes), ThreadPoolExecutor(DOWNLOADS) as pool:

        def once(package: Package, wheel: Wheel) -> Wheel | str:
            return download(_links(package, wheel, indexes), lambda _path: None)

        found = pool.map(once, *zip(*missing, strict=True))
        for (_, wheel), outcome in zip(missing, found, strict=True):
            if isinstance(outcome, str):
                raise ImageError(
                    f"the wheel {wheel.filename} of the lock is not in the cache: {outcome}",
                    hint="Lock again, or build where its index can be reached.",
                )


def _links(package: Package, wheel: Wheel, indexes: PackageIndexes) -> Iterator[Link]:
    """Where the very file of a lock may be."""
    from .index import Link

    hashes = {"sha256": wheel.sha256}
    if wheel.url:
        yield Link(wheel.url, hashes=hashes)
    for link in indexes.wheels(package.name, package.version):
        if link.filename == wheel.filename:
            yield Link(link.normalized, hashes=hashes)


def add_wheel(path: Path, *, cache: Path, url: str | None = None) -> Wheel:
    """Copy a wheel file into the cache. ImageError if it is not a wheel."""
    WheelFile.open(path)
    wheel = Wheel(path.name, _sha256(path), path.stat().st_size, url)
    final = wheel_path(cache, wheel)
    if not final.is_file() or final.stat().st_size != wheel.size:
        with path.open("rb") as source, atomic.replacing(final) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return wheel


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def difference(path: Path, rows: Mapping[str, RecordRow]) -> str | None:
    """The first file of a wheel that an installed RECORD does not have with the same hash.

    ``None``: the wheel is what was installed.
    """
    try:
        wheel = WheelFile.open(path)
    except ImageError as error:
        return error.message
    data = wheel.info.removesuffix(".dist-info") + ".data/"
    own = {f"{wheel.info}/{name}" for name in ("RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER")}
    for name in wheel.members:
        if name in own or "__pycache__" in name:
            continue
        target = name
        if name.startswith(data):
            # Scripts are rewritten, and where data and headers go differs between installers.
            scheme, _, target = name[len(data) :].partition("/")
            if scheme not in ("purelib", "platlib"):
                continue
        row, installed = wheel.record.get(name), rows.get(target)
        if row is None or installed is None or not row.hash or installed.hash != row.hash:
            return target
    return None


def _not_from_a_wheel(installed: Installed) -> str | None:
    """Why no index can have the very build that is installed; ``None`` if one can."""
    if installed.info.suffix != ".dist-info" or not installed.recorded:
        return "it has no RECORD of its files and their hashes"
    origin = installed.direct_url
    url = _without_credentials(str(origin.get("url", "")))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        commit = str(vcs.get("commit_id", ""))[:12]
        return f"it was built from {vcs.get('vcs', 'vcs')}+{url}@{commit}"
    if "dir_info" in origin:
        return f"it was {'installed as editable' if installed.editable else 'built'} from {url}"
    if "archive_info" in origin and not urlsplit(url).path.endswith(".whl"):
        return f"it was built from {url}"
    return None


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _key(installed: Installed) -> str:
    # Its path and time too, since installed files are compared with their RECORD only once.
    path = installed.info / "RECORD"
    sha256 = hashlib.sha256(installed.record).hexdigest()
    place = [str(path), path.stat().st_mtime_ns]
    return cache_key("located", installed.name, installed.path_version, sha256, place)


def _recall(cache: Path, key: str) -> Wheel | str | None:
    """The wheel, or the reason why there is none; ``None`` if neither is known or still valid."""
    try:
        value: Any = json.loads((cache / "located" / f"{key}.json").read_bytes())
        if "filename" not in value:
            return str(value["reason"]) if time.time() < value["until"] else None
        wheel = Wheel(**value)
        size = wheel_path(cache, wheel).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return wheel if size == wheel.size else None


def _search(
    missing: Mapping[str, Installed], cache: Path, fetch: bool, progress: Progress
) -> dict[str, Wheel | str]:
    """The wheel of each distribution, or why there is none, by name. They are remembered by key."""
    outcomes: dict[str, Wheel | str] = {}

    def settle(key: str, outcome: Wheel | str, valid: float = RETRY_AFTER) -> None:
        outcomes[missing[key].name] = outcome
        value: Any = {"reason": outcome, "until": time.time() + valid}
        if isinstance(outcome, Wheel):
            value = asdict(outcome)
        atomic.write(cache / "located" / f"{key}.json", canonical(value))

    stored = sorted((cache / "wheels").glob("*/*.whl"))
    absent: list[str] = []
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        found = pool.map(lambda item: _from_cache(item, stored, cache), missing.values())
        for key, outcome in zip(missing, found, strict=True):
            if outcome is not None:
                settle(key, outcome)
            elif fetch:
                absent.append(key)
            else:
                outcomes[missing[key].name] = "its wheel is not in the cache"
    if not absent:
        return outcomes
    with _downloading(cache) as (download, indexes), ThreadPoolExecutor(DOWNLOADS) as pool:

        def once(installed: Installed) -> Wheel | str:
            rows = installed.rows
            return download(_candidates(installed, indexes), lambda path: difference(path, rows))

        futures = {pool.submit(once, missing[key]): key for key in absent}
        progress("fetching wheels", 0, len(futures))
        for done, future in enumerate(as_completed(futures), 1):
            valid = RETRY_OFFLINE_AFTER if indexes.failures else RETRY_AFTER
            settle(futures[future], future.result(), valid)
            progress("fetching wheels", done, len(futures))
    return outcomes


def _from_cache(installed: Installed, stored: Sequence[Path], cache: Path) -> Wheel | str | None:
    changed = _changed_file(installed)
    if changed is not None:
        return f"its installed files were changed: {changed}"
    for path in stored:
        name, version = split_filename(path.name)
        if canonicalize_name(name) != installed.name:
            continue
        if same_version(version, installed.version) and not difference(path, installed.rows):
            return add_wheel(path, cache=cache)
    return None


def _changed_file(installed: Installed) -> str | None:
    """The first file that differs from its RECORD row; files that were deleted do not count."""
    for name, row in installed.rows.items():
        if name.startswith(("..", "/")) or name.endswith(".pyc") or row.sha256 is None:
            continue
        with suppress(OSError):
            if _sha256(installed.root / name) != row.sha256:
                return name
    return None


Download = Callable[[Iterable["Link"], Callable[[Path], str | None]], Wheel | str]


@contextmanager
def _downloading(cache: Path) -> Iterator[tuple[Download, PackageIndexes]]:
    """The user's indexes, and a function that brings one of several wheels into the cache.

    It returns the first that can be downloaded and has no difference, or why there is none.
    """
    from .index import PackageIndexes
    from .settings import index_settings

    def download(links: Iterable[Link], differing: Callable[[Path], str | None]) -> Wheel | str:
        reason = ""
        for link in links:
            try:
                path = indexes.download(link, folder)
                different = differing(path)
                if different is None:
                    url = None if link.is_file else _without_credentials(link.url_without_fragment)
                    return add_wheel(path, cache=cache, url=url)
            except (DependencyError, ImageError, OSError) as error:  # noqa: PERF203 - few candidates
                reason = f"{link.filename} cannot be downloaded: {getattr(error, 'message', error)}"
            else:
                # The first candidate is the likeliest, so its difference is the one to report.
                reason = reason or f"the installed files differ from {link.filename}: {different}"
            finally:
                (folder / link.filename).unlink(missing_ok=True)
        return reason or indexes.why_none()

    (cache / "tmp").mkdir(parents=True, exist_ok=True)
    with (
        closing(PackageIndexes(index_settings())) as indexes,
        tempfile.TemporaryDirectory(prefix="wheels-", dir=cache / "tmp") as name,
    ):
        folder = Path(name)
        yield download, indexes


def _candidates(installed: Installed, indexes: PackageIndexes) -> list[Link]:
    """The wheels that may be what is installed, the likeliest first."""
    from .index import Link, usable

    links = usable(indexes.wheels(installed.name, installed.version), _tags(installed))
    if url := installed.direct_url.get("url"):
        # It was installed by the URL or path of its wheel.
        links.insert(0, Link(str(url), hashes=installed.direct_url["archive_info"].get("hashes")))
    return links[:MAX_CANDIDATES]


def _tags(installed: Installed) -> frozenset[str]:
    """The tags of the wheel that it was installed from."""
    return frozenset(re.findall(r"^Tag:\s*(\S+)", installed.read_text("WHEEL"), re.M))
