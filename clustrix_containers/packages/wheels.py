"""Wheels become layers without being recompressed, and installed distributions are matched with wheels.

A wheel's deflate streams go into the layer as they are, so its layer has one digest on every
machine. Wheel files lie in ``CACHE/wheels/<sha256>/<filename>``; ``CACHE/located/<key>.json``
remembers which of them an installed distribution came from, or that none could be found.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import ImageError
from clustrix_containers.oci.archive import Entry, write_layer
from clustrix_containers.oci.model import Layer, canonical
from clustrix_containers.oci.store import (
    Progress,
    cache_key,
    recall,
    remember,
    temporary,
    write_atomically,
)

from .index import Fetched, download, download_exactly
from .lock import Package, Wheel
from .records import Row, parse_record
from .wheelfile import WheelFile, split_filename, wheel_entries

REMEMBERED = 24 * 3600.0
"""Seconds for which nobody asks again for a wheel that was not to be had."""

OFFLINE = 3600.0
"""Seconds for which nobody asks again when no index answered."""


def wheel_layer(path: Path, sha256: str, python: str, *, cache: Path) -> Layer:
    """The layer of one wheel, made once per machine and Python minor version ``X.Y``."""
    key = cache_key("wheel", sha256, python)
    known = recall(cache, key)
    if known:
        return known[0]
    name, version = split_filename(path.name)
    layer = write_layer(
        wheel_entries(path, python),
        cache=cache,
        form="spliced",
        kind="wheel",
        title=f"{name.replace('_', '-')} {version}",
        created_by=f"clustrix: wheel {path.name}",
    )
    remember(cache, key, [layer])
    return layer


def wheels_layer(wheels: Iterable[tuple[Path, str]], python: str, *, cache: Path) -> Layer:
    """One layer for several (path, sha256) wheels. A path that two of them have is the later's."""
    wheels = list(wheels)
    key = cache_key("wheels", [sha256 for _, sha256 in wheels], python)
    known = recall(cache, key)
    if known:
        return known[0]
    entries: dict[str, Entry] = {}
    for path, _ in wheels:
        for entry in wheel_entries(path, python):
            entries[entry.name] = entry
    names = [" ".join(split_filename(path.name)) for path, _ in wheels]
    layer = write_layer(
        entries.values(),
        cache=cache,
        form="spliced",
        kind="packages",
        title=", ".join(names),
        created_by="clustrix: wheels " + ", ".join(path.name for path, _ in wheels),
    )
    remember(cache, key, [layer])
    return layer


def wheel_path(cache: Path, sha256: str, filename: str) -> Path:
    """Where a wheel file lies, or would lie."""
    return cache / "wheels" / sha256 / filename


def locate(
    distributions: Sequence[Distribution],
    *,
    cache: Path,
    fetch: bool = True,
    progress: Progress | None = None,
) -> dict[str, Wheel]:
    """By name, the wheel that each distribution was installed from, where it can be had.

    A wheel stands for an installed distribution only where its RECORD says what the installed
    RECORD says. It comes from the cache, else (``fetch``) once from the user's index by the
    user's own pip. What cannot be had is not asked for again for a day, so this costs one small
    file per distribution from the second time on. Never raises for want of a wheel.
    """
    found: dict[str, Wheel] = {}
    missing: list[tuple[Distribution, str]] = []
    for distribution in distributions:
        key = _located_key(distribution)
        if key is None or _local(distribution):
            continue
        known, wheel = _recall(cache, key)
        if wheel is not None:
            found[distribution.name] = wheel
        elif not known:
            missing.append((distribution, key))
    if missing:
        missing = [pair for pair in missing if not _from_store(pair, cache, found)]
    if missing and fetch:
        found.update(_fetch(missing, cache, progress))
    return found


def obtain(packages: Iterable[Package], *, cache: Path) -> None:
    """Bring the wheels of a lock into the cache, by their hash; ImageError names what is missing."""
    missing = {
        f"{package.name}=={package.version}": package.wheel
        for package in packages
        if package.wheel is not None
        and not wheel_path(cache, package.wheel.sha256, package.wheel.filename).is_file()
    }
    if not missing:
        return
    folder = temporary(cache, ".download")
    folder.mkdir()
    try:
        said = download_exactly({name: w.sha256 for name, w in missing.items()}, folder)
        if said is None:
            for path in folder.glob("*.whl"):
                add_wheel(path, cache=cache)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for wheel in missing.values():
        if not wheel_path(cache, wheel.sha256, wheel.filename).is_file():
            reason = (said or "the index has another file").strip().splitlines()[-1]
            raise ImageError(
                f"the wheel {wheel.filename} of the lock is not on this machine: {reason}",
                hint="Lock again, or build where its index is in reach.",
                wheel=wheel.filename,
            )


def add_wheel(path: Path, *, cache: Path) -> Wheel:
    """Put a wheel file into the cache. ImageError if it is not a wheel."""
    WheelFile.open(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    final = wheel_path(cache, digest.hexdigest(), path.name)
    if not final.is_file() or final.stat().st_size != path.stat().st_size:
        partial = temporary(cache, ".whl")
        try:
            shutil.copyfile(path, partial)
            final.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
    return Wheel(path.name, digest.hexdigest(), final.stat().st_size)


def matches(path: Path, record: Mapping[str, Row]) -> bool:
    """Whether every file that a wheel puts into site-packages has its hash in an installed RECORD."""
    try:
        wheel = WheelFile.open(path)
    except ImageError:
        return False
    data = wheel.info.removesuffix(".dist-info") + ".data/"
    own = {f"{wheel.info}/{name}" for name in ("RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER")}
    compared = False
    for name, row in wheel.record.items():
        if name in own or "__pycache__" in name or name not in wheel.members:
            continue
        if name.startswith(data):
            # Scripts are rewritten, and where data and headers go differs between installers.
            scheme, _, rest = name[len(data) :].partition("/")
            if scheme not in ("purelib", "platlib"):
                continue
            name = rest
        other = record.get(name)
        if other is None or not row.hash or other.hash != row.hash:
            return False
        compared = True
    return compared


def installed_from(path: Path, distribution: Distribution) -> bool:
    """Whether the installed files of a distribution are those of the wheel at ``path``."""
    try:
        return matches(path, _record(distribution))
    except (OSError, UnicodeDecodeError):
        return False


def _located_key(distribution: Distribution) -> str | None:
    try:
        raw = (distribution.info / "RECORD").read_bytes()
    except OSError:
        return None
    return cache_key("located", distribution.name, distribution.version, _sha256(raw))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _local(distribution: Distribution) -> bool:
    """Installed from a directory, an archive or a repository: no index has that build."""
    return (distribution.info / "direct_url.json").exists()


def _recall(cache: Path, key: str) -> tuple[bool, Wheel | None]:
    """Whether anything is known, and the wheel."""
    try:
        value: Any = json.loads((cache / "located" / f"{key}.json").read_bytes())
        if "filename" not in value:
            return time.time() < value["until"], None
        wheel = Wheel(value["filename"], value["sha256"], value["size"])
        size = wheel_path(cache, wheel.sha256, wheel.filename).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False, None
    return (True, wheel) if size == wheel.size else (False, None)


def _remember(cache: Path, key: str, value: Mapping[str, Any]) -> None:
    write_atomically(cache / "located" / f"{key}.json", canonical(dict(value)))


def _accept(key: str, path: Path, record: Mapping[str, Row], cache: Path) -> Wheel | None:
    if not matches(path, record):
        return None
    wheel = add_wheel(path, cache=cache)
    _remember(cache, key, {"filename": wheel.filename, "sha256": wheel.sha256, "size": wheel.size})
    return wheel


def _from_store(pair: tuple[Distribution, str], cache: Path, found: dict[str, Wheel]) -> bool:
    distribution, key = pair
    for path in _stored(cache, distribution):
        wheel = _accept(key, path, _record(distribution), cache)
        if wheel is not None:
            found[distribution.name] = wheel
            return True
    return False


def _stored(cache: Path, distribution: Distribution) -> Iterator[Path]:
    for path in sorted((cache / "wheels").glob("*/*.whl")):
        name, version = split_filename(path.name)
        same = name.lower().replace("_", "-") == distribution.name
        if same and version.replace("_", "-") == distribution.version.replace("_", "-"):
            yield path


def _record(distribution: Distribution) -> dict[str, Row]:
    return parse_record((distribution.info / "RECORD").read_text("utf-8"))


def _fetch(
    missing: Sequence[tuple[Distribution, str]], cache: Path, progress: Progress | None
) -> dict[str, Wheel]:
    found: dict[str, Wheel] = {}
    names = {d.name: f"{d.name}=={d.version}" for d, _ in missing}
    with_folder = temporary(cache, ".download")
    with_folder.mkdir()
    try:
        fetched: Fetched = download(names, with_folder, progress)
        for distribution, key in missing:
            path = fetched.wheels.get(distribution.name)
            wheel = path and _accept(key, path, _record(distribution), cache)
            if wheel:
                found[distribution.name] = wheel
                continue
            reason = fetched.reasons.get(distribution.name, "the index has another build of it")
            wait = OFFLINE if fetched.offline else REMEMBERED
            _remember(cache, key, {"reason": reason, "until": time.time() + wait})
    finally:
        shutil.rmtree(with_folder, ignore_errors=True)
    return found
