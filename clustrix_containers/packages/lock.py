"""A Lock: base and distributions, pinned, for one Python and one platform.

Form: ``pylock.toml`` (PEP 751, https://packaging.python.org/en/latest/specifications/pylock-toml/)
with our own table ``[tool.clustrix-containers]``.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import DependencyError
from clustrix_containers.worker.contract import VENV

from .installed import Installed
from .requirements import toml

_TOOL = "clustrix-containers"
_VERSION = 1
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "arm/v7": "armv7l"}
"""What Go, and so OCI, calls a machine, and what PEP 508 calls it."""

_INSTALLER_FILES = frozenset(
    {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json"}
    | {"uv_cache.json", "uv_build.json"}
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel file: its name, sha256 (hex) and size in bytes; ``url`` where it came from, if known."""

    filename: str
    sha256: str
    size: int
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned distribution: from ``wheel``, or from the installed tree whose RECORD digest is ``tree``."""

    name: str
    version: str
    wheel: Wheel | None
    tree: str | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """What an image is made of, except for the user's own code.

    ``python`` is ``X.Y``; ``platform`` is ``linux/amd64``; ``base`` is ``repo@sha256:…`` (the
    manifest of that platform), ``packed:sha256:…`` (the digest of the packed interpreter's
    layers) or ``dockerfile:sha256:…`` (the digest of the image that was built from it).
    """

    python: str
    platform: str
    base: str
    packages: tuple[Package, ...]


def lock(
    distributions: Sequence[Distribution],
    *,
    wheels: Mapping[str, Wheel],
    base: str,
    python: str,
    platform: str,
    hashes: Mapping[str, tuple[str, ...]] | None = None,
) -> Lock:
    """Pin distributions: to their wheel where ``wheels`` (by name) has one, else to the installed tree.

    ``hashes`` are the archives that a requirements or lock file allows (``Resolution.hashes``).
    DependencyError: a wheel that is not of its distribution, or not among those.
    """
    packages = []
    for distribution in sorted(distributions, key=lambda d: d.name):
        wheel = wheels.get(distribution.name)
        if wheel is not None:
            _check_wheel(distribution, wheel, (hashes or {}).get(distribution.name, ()))
            wheel = replace(wheel, url=_without_credentials(wheel.url))
        packages.append(
            Package(
                distribution.name,
                distribution.version,
                wheel,
                tree_digest(distribution) if wheel is None else None,
                distribution.reasons,
            )
        )
    return Lock(python, platform, base, tuple(packages))


def _check_wheel(distribution: Distribution, wheel: Wheel, allowed: tuple[str, ...]) -> None:
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import InvalidVersion, Version

    try:
        name, version, _, _ = parse_wheel_filename(wheel.filename)
        fits = name == distribution.name and version == Version(distribution.version)
    except (InvalidWheelFilename, InvalidVersion):
        fits = False
    if not fits:
        raise DependencyError(
            f"{wheel.filename} is not a wheel of {distribution.name} {distribution.version}",
            name=distribution.name,
        )
    sha256 = [value for value in allowed if value.startswith("sha256:")]
    if sha256 and f"sha256:{wheel.sha256}" not in sha256:
        raise DependencyError(
            f"{wheel.filename} has the hash sha256:{wheel.sha256}, which the requirements do not allow",
            hint="Its file was replaced, or the requirements are of another build: lock them again.",
            name=distribution.name,
        )


def _without_credentials(url: str | None) -> str | None:
    """A lock is public: user and password of an index do not belong in it."""
    if url is None:
        return None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def tree_digest(distribution: Distribution) -> str:
    """``sha256:…`` over the sorted lines ``path hash size`` of what its wheel brought.

    Read from RECORD alone, so what an installer makes does not count (bytecode, its own
    notes, console scripts with this machine's interpreter in them), and one wheel installed
    on two machines has one digest. Without a RECORD the files themselves are hashed.
    """
    scripts = _entry_points(distribution.info)
    has_record = (distribution.info / "RECORD").is_file()
    lines = []
    for path, row in Installed.of(distribution).rows.items():
        if _made_by_installer(path, distribution, scripts):
            continue
        if not has_record:
            lines.append(f"{path} {_hash(distribution.location / path)}")
        elif row.hash:
            # How deep site-packages lies below the prefix differs between installations.
            within = re.sub(r"\A(\.\./)+", "../", path) if path.startswith("../") else path
            lines.append(f"{within} {row.hash} {'' if row.size is None else row.size}")
    return _digest("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))


def _made_by_installer(path: str, distribution: Distribution, scripts: frozenset[str]) -> bool:
    if "__pycache__/" in path:
        return True
    if path.startswith(distribution.info.name):
        return path[len(distribution.info.name) + 1 :] in _INSTALLER_FILES
    if not path.startswith(("../", "/")):
        return False
    parts = path.split("/")
    if "include" in parts:
        return True  # where headers go differs between installations
    if not {"bin", "Scripts"} & set(parts[:-1]):
        return path.startswith("/")
    return parts[-1] in scripts or _shebang(distribution.location / path)


def _shebang(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _entry_points(info: Path) -> frozenset[str]:
    """Names of the scripts that an installer makes from ``entry_points.txt``."""
    try:
        text = (info / "entry_points.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return frozenset()
    names, scripts = set(), False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            scripts = line in ("[console_scripts]", "[gui_scripts]")
        elif scripts and "=" in line:
            names.add(line.partition("=")[0].strip())
    return frozenset(names)


def _hash(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DependencyError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    return f"{_digest(data)} {len(data)}"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check(lock: Lock, distributions: Sequence[Distribution]) -> None:
    """A Lock that exists is obeyed or fails: DependencyError lists all that differs.

    Versions are compared, and the installed tree where the lock pins one. Its field
    ``differences`` holds the lines.
    """
    locked = {package.name: package for package in lock.packages}
    installed = {distribution.name: distribution for distribution in distributions}
    differences = []
    for name in sorted(locked.keys() | installed.keys()):
        difference = _difference(locked.get(name), installed.get(name))
        if difference:
            differences.append(f"{name}: {difference}")
    if differences:
        raise DependencyError(
            "the lock and what is needed here differ:\n  " + "\n  ".join(differences),
            hint="Install what is locked, or lock again.",
            differences=tuple(differences),
        )


def _difference(package: Package | None, distribution: Distribution | None) -> str:
    if package is None:
        return f"not locked, {distribution.version if distribution else ''} is needed"
    if distribution is None:
        return f"locked {package.version}, not needed here"
    if package.version != distribution.version:
        return f"locked {package.version}, installed {distribution.version}"
    if package.tree is not None and (tree := tree_digest(distribution)) != package.tree:
        return f"locked the files {package.tree[:19]}…, installed {tree[:19]}… ({package.version})"
    return ""


def dumps(lock: Lock) -> str:
    """The lock as ``pylock.toml``: the same lock gives the same text.

    An installed tree has no archive that an installer could fetch: it is written as the
    directory that it is in the image, with version and digest in our ``tool`` table.
    """
    import tomli_w

    os_name, _, machine = lock.platform.partition("/")
    marker = (
        f'sys_platform == "{os_name}" and platform_machine == "{_MACHINES.get(machine, machine)}"'
        f' and python_version == "{lock.python}"'
    )
    document: dict[str, Any] = {
        "lock-version": "1.0",
        "environments": [marker],
        "requires-python": f"=={lock.python}.*",
        "created-by": _TOOL,
        "packages": [_dump_package(lock, p) for p in sorted(lock.packages, key=lambda p: p.name)],
        "tool": {
            _TOOL: {
                "version": _VERSION,
                "base": lock.base,
                "platform": lock.platform,
                "python": lock.python,
            }
        },
    }
    return tomli_w.dumps(document)


def _dump_package(lock: Lock, package: Package) -> dict[str, Any]:
    # File names in reasons may hold bytes that are not UTF-8; TOML cannot.
    reasons = [r.encode("utf-8", "backslashreplace").decode() for r in package.reasons]
    if package.wheel is None:
        path = f"{VENV}/lib/python{lock.python}/site-packages"
        tool = {"version": package.version, "tree": package.tree, "reasons": reasons}
        return {"name": package.name, "directory": {"path": path}, "tool": {_TOOL: tool}}
    wheel = package.wheel
    source = {"url": wheel.url} if wheel.url else {"path": wheel.filename}
    return {
        "name": package.name,
        "version": package.version,
        "wheels": [
            {
                "name": wheel.filename,
                **source,
                "size": wheel.size,
                "hashes": {"sha256": wheel.sha256},
            }
        ],
        "tool": {_TOOL: {"reasons": reasons}},
    }


def loads(text: str, path: Path | str = "pylock.toml") -> Lock:
    """Read a lock that :func:`dumps` wrote; DependencyError names ``path`` and what is wrong in it."""
    try:
        document = toml().loads(text)
    except toml().TOMLDecodeError as error:
        raise DependencyError(f"{path}: not TOML: {error}", path=str(path)) from error
    ours = document.get("tool", {}).get(_TOOL) if isinstance(document.get("tool"), dict) else None
    if not isinstance(ours, dict):
        raise DependencyError(
            f"{path}: a lock without the table [tool.{_TOOL}]",
            hint=f"It is another tool's: hand it as requirements={str(path)!r}.",
            path=str(path),
        )
    if ours.get("version") != _VERSION:
        raise DependencyError(
            f"{path}: a lock of form {ours.get('version')!r}, this reads form {_VERSION}",
            hint="Lock again, or use the version of clustrix-containers that wrote it.",
            path=str(path),
        )
    try:
        packages = tuple(_load_package(item) for item in document["packages"])
        return Lock(_str(ours, "python"), _str(ours, "platform"), _str(ours, "base"), packages)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DependencyError(
            f"{path}: not a lock: {reason}", hint="Lock again.", path=str(path)
        ) from error


def _load_package(item: dict[str, Any]) -> Package:
    name, ours = _str(item, "name"), item["tool"][_TOOL]
    reasons = tuple(map(str, ours["reasons"]))
    if "wheels" not in item:
        return Package(name, _str(ours, "version"), None, _checked(_str(ours, "tree")), reasons)
    (wheel,) = item["wheels"]
    sha256 = _checked(f"sha256:{_str(wheel['hashes'], 'sha256')}").removeprefix("sha256:")
    size, url = wheel["size"], wheel.get("url")
    if type(size) is not int or size < 0:
        raise ValueError(f"the size {size!r} of {name}")
    found = Wheel(_str(wheel, "name"), sha256, size, None if url is None else str(url))
    return Package(name, _str(item, "version"), found, None, reasons)


def _str(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} = {value!r} is not a string")
    return value


def _checked(digest: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is not a sha256 digest")
    return digest


def read(path: Path) -> Lock:
    """Read a lock file; DependencyError if it cannot be read or is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DependencyError(f"cannot read {path}: {reason}", path=str(path)) from error
    return loads(text, path)


def write(path: Path, lock: Lock) -> None:
    """Write a lock file atomically: whoever reads it sees the old one or the new one."""
    data = dumps(lock).encode()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
