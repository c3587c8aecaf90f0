"""A Lock: base, distributions and runtime, pinned, for one Python and one platform.

Format: ``pylock.toml`` (PEP 751, https://packaging.python.org/en/latest/specifications/pylock-toml/)
with a table of our own::

    [tool.clustrix-containers]
    version = 1                # of this table
    client = "0.1.0"           # the version of clustrix-containers that wrote it
    base = "packed:sha256:…"   # Lock.base
    platform = "linux/amd64"
    python = "3.11"
    runtime = { version = "1", sha256 = "…" }
    cloudpickle = { version = "3.1.1", sha256 = "…" }

Each package has ``[packages.tool.clustrix-containers]`` with its ``reasons``; one that is packed
from its installed files is a ``directory`` with its ``version`` and the digest ``tree`` there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.capture.bundle import Distribution
from clustrix_containers.errors import DependencyError, ImageError
from clustrix_containers.oci.archive import read_content
from clustrix_containers.oci.model import Platform
from clustrix_containers.oci.model import sha256 as digest_of
from clustrix_containers.packages.wheels.wheel import script_entries
from clustrix_containers.storage import atomic
from clustrix_containers.worker.contract import VENV

from .installed import Installed
from .requirements import parse_pylock, read_text

_TOOL = "clustrix-containers"
_VERSION = 1
_HEX = "[0-9a-f]{64}"
_DIGEST = f"sha256:{_HEX}"
_FORMS = {
    "client": r"[\w.+-]+",
    "base": rf"[^\s@]+(:|@){_DIGEST}",
    "platform": r"[a-z0-9]+(/[a-z0-9_.]+){1,2}",
    "python": r"\d+\.\d+",
}
"""What the strings of our table look like."""

INSTALLER_FILES = frozenset(
    {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json"}
    | {"uv_cache.json", "uv_build.json"}
)
"""What an installer writes into ``.dist-info`` on its own."""


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
class Component:
    """Something that every image carries: its version, and the sha256 (hex) over its files."""

    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Lock:
    """What an image is made of, except for the user's own code.

    ``python`` is ``X.Y``; ``platform`` is ``linux/amd64``; ``base`` is ``repo@sha256:…`` (the
    manifest of that platform), ``packed:sha256:…`` (the digest of the packed interpreter's
    layers) or ``dockerfile:sha256:…`` (the digest of the image that was built from it).
    ``runtime`` is what the image carries of ours, ``client`` the version of clustrix-containers
    that made the lock.
    """

    python: str
    platform: str
    base: str
    packages: tuple[Package, ...]
    runtime: Component
    cloudpickle: Component
    client: str


def pin(
    distributions: Sequence[Distribution],
    wheels: Mapping[str, Wheel],
    hashes: Mapping[str, tuple[str, ...]],
) -> tuple[Package, ...]:
    """Distributions pinned to their wheel where ``wheels`` (by name) has one, else to the installed tree.

    ``hashes`` are the archives that a requirements or lock file allows (``Resolution.hashes``).
    DependencyError: a wheel that is not among them.
    """
    packages = []
    for distribution in sorted(distributions, key=lambda d: d.name):
        name, wheel = distribution.name, wheels.get(distribution.name)
        allowed = [it for it in hashes.get(name, ()) if it.startswith("sha256:")]
        if wheel and allowed and f"sha256:{wheel.sha256}" not in allowed:
            raise DependencyError(
                f"{wheel.filename} has the hash sha256:{wheel.sha256}, which the requirements do not allow",
                hint="Its file was replaced, or the requirements are of another build: lock them again.",
                name=name,
            )
        tree = None if wheel else tree_digest(distribution)
        packages.append(Package(name, distribution.version, wheel, tree, distribution.reasons))
    return tuple(packages)


def tree_digest(distribution: Distribution) -> str:
    """``sha256:…`` over the sorted lines ``path hash size`` of what its wheel brought.

    Read from RECORD alone, without what an installer makes (bytecode, its own metadata, console
    scripts with this machine's interpreter in them), so one wheel installed on two machines has
    one digest. Without a RECORD the files themselves are hashed.
    """
    installed, lines = Installed.of(distribution), []
    scripts = _entry_points(installed)
    for path, row in installed.rows.items():
        if _made_by_installer(path, installed, scripts):
            continue
        if not installed.recorded:
            data = b"".join(read_content(installed.root / path))
            lines.append(f"{path} {digest_of(data)} {len(data)}")
        elif row.hash:
            # How deep site-packages lies below the prefix differs between installations.
            within = re.sub(r"\A(\.\./)+", "../", path) if path.startswith("../") else path
            lines.append(f"{within} {row.hash} {'' if row.size is None else row.size}")
    return digest_of("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))


def _made_by_installer(path: str, installed: Installed, scripts: frozenset[str]) -> bool:
    if "__pycache__/" in path:
        return True
    if path.startswith(installed.info.name):
        return path[len(installed.info.name) + 1 :] in INSTALLER_FILES
    if not path.startswith(("../", "/")):
        return False
    parts = path.split("/")
    if "include" in parts:
        return True  # where headers go differs between installations
    if not {"bin", "Scripts"} & set(parts[:-1]):
        return path.startswith("/")
    return parts[-1] in scripts or has_shebang(installed.root / path)


def has_shebang(path: Path) -> bool:
    """Whether a file is a script."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _entry_points(installed: Installed) -> frozenset[str]:
    """Names of the scripts that an installer makes from ``entry_points.txt``."""
    try:
        entries = script_entries(installed.read_text("entry_points.txt"))
        return frozenset(posixpath.basename(entry.name) for entry in entries)
    except ImageError:
        return frozenset()


def check(
    lock: Lock,
    distributions: Sequence[Distribution],
    installed_from: Callable[[Wheel, Distribution], bool],
) -> None:
    """DependencyError unless a lock has what is needed here, as it is installed here.

    Versions are compared, and the installed files: with the locked tree, or with the locked wheel
    by ``installed_from``. A wheel that is locked and not needed here need not be installed. The
    field ``differences`` lists everything that differs.
    """
    locked = {package.name: package for package in lock.packages}
    names = {distribution.name for distribution in distributions}
    differences = [
        f"{package.name}: {package.version} is locked with its installed files, and not installed"
        for package in lock.packages
        if package.wheel is None and package.name not in names
    ]
    differences += [
        f"{distribution.name}: {difference}"
        for distribution in sorted(distributions, key=lambda d: d.name)
        if (difference := _difference(locked.get(distribution.name), distribution, installed_from))
    ]
    if differences:
        raise DependencyError(
            "the lock does not match what is needed here:\n  " + "\n  ".join(differences),
            hint="Install what is locked, or lock again: cxc lock (--package for what only arguments need).",
            differences=tuple(differences),
        )


def _difference(
    package: Package | None,
    distribution: Distribution,
    installed_from: Callable[[Wheel, Distribution], bool],
) -> str:
    if package is None:
        why = f" ({distribution.reasons[0]})" if distribution.reasons else ""
        return f"{distribution.version} is needed and not locked{why}"
    if package.version != distribution.version:
        return f"{package.version} is locked, {distribution.version} is installed"
    if package.wheel is not None:
        if installed_from(package.wheel, distribution):
            return ""
        return f"the installed files differ from those of the locked wheel {package.wheel.filename}"
    tree = tree_digest(distribution)
    if package.tree == tree:
        return ""
    return f"the files {str(package.tree)[:19]}… are locked, {tree[:19]}… are installed"


def dumps(lock: Lock) -> str:
    """The lock as ``pylock.toml``: the same lock gives the same text.

    An installed tree has no archive that an installer could fetch: it is written as the
    directory that it is in the image.
    """
    import tomli_w

    platform = Platform(*lock.platform.split("/"))
    marker = (
        f'sys_platform == "{platform.os}" and platform_machine == "{platform.machine}"'
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
                **{name: getattr(lock, name) for name in _FORMS},
                "runtime": asdict(lock.runtime),
                "cloudpickle": asdict(lock.cloudpickle),
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
    hashes = {"sha256": wheel.sha256}
    return {
        "name": package.name,
        "version": package.version,
        "wheels": [{"name": wheel.filename, **source, "size": wheel.size, "hashes": hashes}],
        "tool": {_TOOL: {"reasons": reasons}},
    }


def loads(text: str, path: Path | str = "pylock.toml") -> Lock:
    """Read a lock that :func:`dumps` wrote; DependencyError names ``path`` and what is wrong in it."""
    again = "Lock again: cxc lock."

    def error(message: str, hint: str = again) -> DependencyError:
        return DependencyError(f"{path}: {message}", hint=hint, path=str(path))

    document, _ = parse_pylock(text, path, hint=again)
    ours = document.get("tool", {}).get(_TOOL)
    if not isinstance(ours, dict):
        raise error(
            f"a lock file without the table [tool.{_TOOL}]",
            f"Another tool wrote it. Use it as requirements={str(path)!r}.",
        )
    if ours.get("version") != _VERSION:
        raise error(
            f"the format of the lock is {ours.get('version')!r}, only {_VERSION} is supported",
            f"Lock again, or use clustrix-containers {ours.get('client')}, which wrote it.",
        )
    try:
        packages = tuple(_load_package(item) for item in document["packages"])
        if len({package.name for package in packages}) < len(packages):
            raise ValueError("a package is locked twice")
        return Lock(
            packages=packages,
            runtime=_component(ours["runtime"]),
            cloudpickle=_component(ours["cloudpickle"]),
            **{name: _string(ours, name, pattern) for name, pattern in _FORMS.items()},
        )
    except (KeyError, TypeError, ValueError) as problem:
        missing = isinstance(problem, KeyError)
        reason = f"{problem.args[0]!r} is missing" if missing else str(problem)
        raise error(f"not a lock: {reason}") from problem


def _load_package(item: dict[str, Any]) -> Package:
    name, ours = item["name"], item["tool"][_TOOL]
    reasons = tuple(map(str, ours["reasons"]))
    if "wheels" not in item:
        tree = _string(ours, "tree", _DIGEST)
        return Package(name, _string(ours, "version"), None, tree, reasons)
    if len(item["wheels"]) != 1:
        raise ValueError(f"{name} has {len(item['wheels'])} wheels, not one")
    (wheel,) = item["wheels"]
    filename = _string(wheel, "name", r"[^/\\\0]+")
    sha256 = _string(wheel["hashes"], "sha256", _HEX)
    if type(wheel["size"]) is not int or wheel["size"] < 0:
        raise ValueError(f"{filename} has the size {wheel['size']!r}")
    found = Wheel(filename, sha256, wheel["size"], wheel.get("url"))
    return Package(name, _string(item, "version"), found, None, reasons)


def _component(table: Any) -> Component:
    return Component(_string(table, "version"), _string(table, "sha256", _HEX))


def _string(table: Any, key: str, pattern: str = r"[\s\S]*") -> str:
    if not isinstance(table, dict):
        raise TypeError(f"{table!r} is not a table")
    value = table[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} = {value!r} is not a string")
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{key} = {value!r}")
    return value


def read(path: Path) -> Lock:
    """Read a lock file; DependencyError if it cannot be read or is not one."""
    return loads(read_text(path, hint=f"Write it: cxc lock FILE.py:FUNC -o {path}"), path)


def write(path: Path, lock: Lock) -> None:
    """Write a lock file atomically."""
    atomic.write(path, dumps(lock).encode(), durable=True)
