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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import DependencyError, ImageError
from clustrix_containers.oci.model import canonical
from clustrix_containers.oci.progress import Progress
from clustrix_containers.oci.store import cache_key
from clustrix_containers.storage import atomic

from .installed import Installed
from .lock import Package, Wheel
from .wheels import RecordRow, WheelFile, same_version, split_filename

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

    wheels: dict[str, Wheel] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def wheel_path(cache: Path, sha256: str, filename: str) -> Path:
    """The place of a wheel file in the cache."""
    return cache / "wheels" / sha256 / filename


def locate(
    distributions: Sequence[Distribution],
    *,
    cache: Path,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Located:
    """The wheel that each distribution was installed from, where one can be found.

    A wheel stands for an installed distribution only where its RECORD has the hashes of the
    installed RECORD, and those are the installed files'. It comes from the cache, else
    (``fetch``) from the indexes that the user has configured. Outcomes are remembered (that
    there is none for a day), so later calls read one small file per distribution. Never raises
    because a wheel is missing; ImageError: a malformed RECORD.
    """
    located = Located()
    missing: dict[str, Installed] = {}
    for distribution in distributions:
        installed = Installed.of(distribution)
        reason = _not_from_a_wheel(installed)
        if reason is not None:
            located.reasons[installed.name] = reason
            continue
        key = _key(installed)
        known = _recall(cache, key)
        if isinstance(known, Wheel):
            located.wheels[installed.name] = known
        elif known is not None:
            located.reasons[installed.name] = known
        else:
            missing[key] = installed
    if missing:
        _search(missing, located, cache, fetch=fetch, progress=progress)
    return located


def obtain(packages: Iterable[Package], *, cache: Path) -> None:
    """Bring the wheels of a lock into the cache; ImageError names one that cannot be had."""
    missing = {
        f"{package.name}=={package.version}": package.wheel
        for package in packages
        if package.wheel is not None
        and not wheel_path(cache, package.wheel.sha256, package.wheel.filename).is_file()
    }
    if not missing:
        return
    with _downloading(cache) as (indexes, folder), ThreadPoolExecutor(DOWNLOADS) as pool:
        futures = {
            wheel: pool.submit(_obtain, pin, wheel, indexes, folder, cache)
            for pin, wheel in missing.items()
        }
        for wheel, future in futures.items():
            if (reason := future.result()) is not None:
                raise ImageError(
                    f"the wheel {wheel.filename} of the lock cannot be downloaded: {reason}",
                    hint="Lock again, or build where its index can be reached.",
                    wheel=wheel.filename,
                )


def add_wheel(path: Path, *, cache: Path, url: str | None = None) -> Wheel:
    """Copy a wheel file into the cache. ImageError if it is not a wheel."""
    WheelFile.open(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    final = wheel_path(cache, digest.hexdigest(), path.name)
    if not final.is_file() or final.stat().st_size != path.stat().st_size:
        with path.open("rb") as source, atomic.replacing(final) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return Wheel(path.name, digest.hexdigest(), final.stat().st_size, url)


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


def installed_from(path: Path, distribution: Distribution) -> bool:
    """Whether an installed distribution has the files of the wheel at ``path``."""
    return difference(path, Installed.of(distribution).rows) is None


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
    # Where it lies and when it was installed, since its files are compared with its RECORD once.
    path = installed.info / "RECORD"
    sha256 = hashlib.sha256(installed.record).hexdigest()
    place = [str(path), path.stat().st_mtime_ns]
    return cache_key("located", installed.name, installed.path_version, sha256, place)


def _recall(cache: Path, key: str) -> Wheel | str | None:
    """The wheel, or the reason why there is none; ``None`` if nothing is known any more."""
    try:
        value: Any = json.loads((cache / "located" / f"{key}.json").read_bytes())
        if "filename" not in value:
            return str(value["reason"]) if time.time() < value["until"] else None
        wheel = Wheel(value["filename"], value["sha256"], value["size"], value["url"])
        size = wheel_path(cache, wheel.sha256, wheel.filename).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return wheel if size == wheel.size else None


def _remember(cache: Path, key: str, value: Mapping[str, Any]) -> None:
    atomic.write(cache / "located" / f"{key}.json", canonical(dict(value)))


def _remember_wheel(cache: Path, key: str, wheel: Wheel) -> None:
    fields = ("filename", "sha256", "size", "url")
    _remember(cache, key, {name: getattr(wheel, name) for name in fields})


def _search(
    missing: dict[str, Installed],
    located: Located,
    cache: Path,
    *,
    fetch: bool,
    progress: Progress | None,
) -> None:
    stored = list(_stored(cache))
    absent: dict[str, Installed] = {}
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        outcomes = pool.map(lambda item: _from_cache(item, stored, cache), missing.values())
        for (key, installed), outcome in zip(missing.items(), outcomes, strict=True):
            if isinstance(outcome, Wheel):
                located.wheels[installed.name] = outcome
                _remember_wheel(cache, key, outcome)
            elif outcome is not None:
                located.reasons[installed.name] = outcome
                _remember(cache, key, {"reason": outcome, "until": time.time() + RETRY_AFTER})
            else:
                absent[key] = installed
    if not fetch:
        located.reasons.update(
            (installed.name, "its wheel is not in the cache") for installed in absent.values()
        )
    elif absent:
        _fetch(absent, located, cache, progress)


def _from_cache(installed: Installed, stored: Sequence[Path], cache: Path) -> Wheel | str | None:
    changed = _changed_file(installed)
    if changed is not None:
        return f"its installed files were changed: {changed}"
    rows = installed.rows
    for path in stored:
        name, version = split_filename(path.name)
        same = canonicalize_name(name) == installed.name
        if same and same_version(version, installed.version) and not difference(path, rows):
            return add_wheel(path, cache=cache)
    return None


def _stored(cache: Path) -> Iterator[Path]:
    yield from sorted((cache / "wheels").glob("*/*.whl"))


def _changed_file(installed: Installed) -> str | None:
    """The first file that is not what RECORD says; files that were deleted do not count."""
    for name, row in installed.rows.items():
        if name.startswith(("..", "/")) or name.endswith(".pyc") or row.sha256 is None:
            continue
        try:
            data = (installed.root / name).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() != row.sha256:
            return name
    return None


@contextmanager
def _downloading(cache: Path) -> Iterator[tuple[PackageIndexes, Path]]:
    """The user's indexes, and a directory for what is downloaded."""
    from .index import PackageIndexes
    from .settings import index_settings

    (cache / "tmp").mkdir(parents=True, exist_ok=True)
    with (
        PackageIndexes(index_settings()) as indexes,
        tempfile.TemporaryDirectory(prefix="wheels-", dir=cache / "tmp") as folder,
    ):
        yield indexes, Path(folder)


def _fetch(
    absent: Mapping[str, Installed], located: Located, cache: Path, progress: Progress | None
) -> None:
    with _downloading(cache) as (indexes, folder), ThreadPoolExecutor(DOWNLOADS) as pool:
        futures = {
            pool.submit(_from_indexes, installed, indexes, folder, cache): key
            for key, installed in absent.items()
        }
        for done, future in enumerate(as_completed(futures)):
            if progress:
                progress("fetching wheels", done, len(futures))
            key, outcome = futures[future], future.result()
            name = absent[key].name
            if isinstance(outcome, Wheel):
                located.wheels[name] = outcome
                _remember_wheel(cache, key, outcome)
                continue
            located.reasons[name] = outcome
            wait = RETRY_OFFLINE_AFTER if indexes.failures else RETRY_AFTER
            _remember(cache, key, {"reason": outcome, "until": time.time() + wait})
    if progress:
        progress("fetching wheels", len(absent), len(absent))


def _from_indexes(
    installed: Installed, indexes: PackageIndexes, folder: Path, cache: Path
) -> Wheel | str:
    """The wheel, or why there is none."""
    from .index import usable

    reason = ""
    links = _direct_links(installed)
    links += usable(indexes.wheels(installed.name, installed.version), _tags(installed))
    for link in links[:MAX_CANDIDATES]:
        try:
            wheel = _download(link, installed, indexes, folder, cache)
        except (DependencyError, ImageError, OSError) as error:
            reason = f"{link.filename} cannot be downloaded: {getattr(error, 'message', error)}"
            continue
        if isinstance(wheel, Wheel):
            return wheel
        # The best candidate's difference says most.
        reason = reason or f"the installed files differ from {link.filename}: {wheel}"
    if reason:
        return reason
    failures = "; ".join(dict.fromkeys(indexes.failures.values()))
    if not indexes:
        return "no package index is configured"
    if indexes.all_failed:
        return f"no package index responded ({failures})"
    lacking = "the package index has no wheel of it for this Python and machine"
    return f"{lacking} ({failures})" if failures else lacking


def _download(
    link: Link, installed: Installed, indexes: PackageIndexes, folder: Path, cache: Path
) -> Wheel | str:
    """The wheel of a link if it is what is installed, else the file that differs."""
    from .index import public_url

    path = indexes.download(link, folder)
    try:
        differing = difference(path, installed.rows)
        if differing is not None:
            return differing
        return add_wheel(path, cache=cache, url=public_url(link))
    finally:
        if path.parent == folder:
            path.unlink(missing_ok=True)


def _direct_links(installed: Installed) -> list[Link]:
    """The wheel that was installed by its URL or path."""
    from .index import Link

    url = installed.direct_url.get("url")
    if not url:
        return []
    return [Link(str(url), hashes=installed.direct_url["archive_info"].get("hashes"))]


def _tags(installed: Installed) -> frozenset[str]:
    """The tags of the wheel that it was installed from."""
    try:
        text = (installed.info / "WHEEL").read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"^Tag:\s*(\S+)", text, re.M))


def _obtain(
    pin: str, wheel: Wheel, indexes: PackageIndexes, folder: Path, cache: Path
) -> str | None:
    """Download the very file of a lock; why that is not possible."""
    from .index import Link

    def links() -> Iterator[Link]:
        hashes = {"sha256": wheel.sha256}
        if wheel.url:
            yield Link(wheel.url, hashes=hashes)
        for link in indexes.wheels(*pin.split("==")):
            if link.filename == wheel.filename:
                yield Link(link.normalized, hashes=hashes)

    reason = None
    for link in links():
        try:
            add_wheel(indexes.download(link, folder), cache=cache)
        except (DependencyError, ImageError, OSError) as error:  # noqa: PERF203 - few candidates
            reason = getattr(error, "message", str(error))
        else:
            return None
    failures = "; ".join(dict.fromkeys(indexes.failures.values()))
    return reason or failures or "the package index does not have it"
