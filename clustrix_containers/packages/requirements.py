"""Requirements: from ``packages=``, ``requirements.txt``, ``pylock.toml``, and of what is installed.

Formats: https://pip.pypa.io/en/stable/reference/requirements-file-format/ (a subset: names,
extras, specifiers, markers, ``-r``, ``-c``, ``--hash``, comments, continued lines) and
https://packaging.python.org/en/latest/specifications/pylock-toml/. Options that name package
indexes are ignored, since what is installed is what goes in.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.errors import DependencyError

from .installed import Installed

if TYPE_CHECKING:
    from packaging.pylock import Pylock
    from packaging.requirements import Requirement

_IGNORED_OPTIONS = {
    "-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--trusted-host",
    "--no-binary", "--only-binary", "--prefer-binary", "--pre", "--require-hashes", "--use-feature",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One requirement that the user wrote, and ``where``: ``requirements.txt:3`` or ``packages=``.

    ``hashes`` are the archives that may provide it (``sha256:…``); empty: any. A ``constraint``
    limits what something else requires.
    """

    requirement: Requirement
    where: str
    hashes: tuple[str, ...] = ()
    constraint: bool = False


@dataclass(frozen=True)
class RequirementsFile:
    """The requests of one file. ``complete``: nothing else may go in (a lock file)."""

    path: Path
    requests: tuple[Request, ...]
    complete: bool = False


def parse(text: str, where: str) -> Requirement:
    """One PEP 508 requirement by name; DependencyError names ``where`` a malformed one is."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise DependencyError(
            f"{where}: not a requirement: {text!r} ({reason})",
            hint="Expected name[extra]>=version. What is installed here goes in, so paths and URLs do not.",
            where=where,
            requirement=text,
        ) from None
    if requirement.url:
        raise DependencyError(
            f"{where}: {requirement.name} is a URL requirement",
            hint=f"What is installed here goes in: install it, then name it as {requirement.name!r}.",
            where=where,
            requirement=requirement.name,
        )
    return requirement


def read(path: Path, environment: Mapping[str, str]) -> RequirementsFile:
    """Read a requirements file, or a lock file if it is named ``pylock.toml`` or ``pylock.*.toml``.

    ``environment`` holds the marker values of the target. DependencyError names file and line.
    """
    if path.suffix == ".toml":
        if not re.fullmatch(r"pylock\.([^.]+\.)?toml", path.name):
            raise DependencyError(
                f"{path}: not the name of a lock file",
                hint="PEP 751 names them pylock.toml or pylock.NAME.toml.",
                path=str(path),
            )
        return _read_pylock(path, environment)
    return RequirementsFile(path, tuple(_requests(path, path.parent, set())))


def read_text(path: Path, where: str = "", *, hint: str | None = None) -> str:
    """A file's text; DependencyError, from ``where``, if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"{where}cannot read {path}: {reason}"
        raise DependencyError(message, hint=hint, path=str(path)) from error


def _requests(
    path: Path,
    top: Path,
    seen: set[tuple[Path, bool]],
    *,
    constraint: bool = False,
    prefix: str = "",
) -> Iterator[Request]:
    """The requests of a file and of those it includes."""
    if (path.resolve(), constraint) in seen:
        return
    seen.add((path.resolve(), constraint))
    shown = path if path.parent != top else path.name
    for number, line in _logical_lines(read_text(path, prefix)):
        where = f"{shown}:{number}"
        if not line.startswith("-"):
            head, hashes = _split_hashes(line, where)
            yield Request(parse(head, where), where, hashes, constraint)
            continue
        match = re.match(r"(--[a-z-]+|-[a-z])(?:\s*=\s*|\s+|(?<=^-[a-z])(?=\S)|\Z)(.*)", line)
        option, value = (match[1], match[2].strip("\"'")) if match else (line.split()[0], "")
        if option in ("-r", "--requirement", "-c", "--constraint") and value:
            limits = constraint or option in ("-c", "--constraint")
            file = path.parent / value
            yield from _requests(file, top, seen, constraint=limits, prefix=f"{where}: ")
        elif option not in _IGNORED_OPTIONS:
            raise DependencyError(
                f"{where}: the option {option} is not supported",
                hint="Local source is sent as far as the function reaches it: remove the line."
                if option in ("-e", "--editable")
                else "Supported are requirements by name, -r, -c and --hash.",
                where=where,
                option=option,
            )


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their first line's number: continued ones joined, comments and blanks dropped."""
    start, pending = 0, ""
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        start = start or number
        comment = re.match(r"\s*#", raw) is not None
        if raw.endswith("\\") and not comment:
            pending += raw[:-1].rstrip(" ") + " "
            continue
        line = re.sub(r"(^|\s+)#.*\Z", "", pending + raw).strip()
        if line:
            yield start, line
        start, pending = 0, ""


def _split_hashes(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    head, *options = re.split(r"\s+(?=--)", line)
    hashes = []
    for option in options:
        match = re.fullmatch(r"--hash\s*[=\s]\s*(\w+):([0-9a-fA-F]+)", option)
        if match is None:
            raise DependencyError(
                f"{where}: the option {option.split('=')[0].split()[0]} is not supported",
                hint="Of the options after a requirement, --hash=ALGORITHM:HEX is.",
                where=where,
                option=option,
            )
        hashes.append(f"{match[1].lower()}:{match[2].lower()}")
    return head, tuple(hashes)


def toml() -> Any:
    """The module that reads TOML in this Python."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def parse_pylock(
    text: str, path: Path | str, *, hint: str | None = None
) -> tuple[dict[str, Any], Pylock]:
    """A lock file (PEP 751), as TOML and validated; DependencyError, naming ``path``, if it is none."""
    from packaging.pylock import Pylock, PylockValidationError

    try:
        document = toml().loads(text)
        return document, Pylock.from_dict(document)
    except (toml().TOMLDecodeError, PylockValidationError) as problem:
        message = f"{path}: not a valid pylock.toml: {problem}"
        raise DependencyError(message, hint=hint, path=str(path)) from problem


def _read_pylock(path: Path, environment: Mapping[str, str]) -> RequirementsFile:
    def error(message: str) -> DependencyError:
        return DependencyError(f"{path}{message}", path=str(path))

    _, lock = parse_pylock(read_text(path), path)
    python = environment["python_full_version"]
    if lock.requires_python and not lock.requires_python.contains(python, prereleases=True):
        raise error(f" is for Python {lock.requires_python}, this is {python}")
    targets = lock.environments
    if targets and not any(it.evaluate(dict(environment), context="requirement") for it in targets):
        raise error(f" is for other environments: {'; '.join(map(str, targets))}")
    requests: dict[str, Request] = {}
    # Groups and extras that were not requested are off, as for an installer.
    groups = frozenset(lock.default_groups or ())
    values: Any = {**environment, "extras": frozenset(), "dependency_groups": groups}
    for package in lock.packages:
        if package.marker and not package.marker.evaluate(values, context="lock_file"):
            continue
        if package.name in requests:
            raise error(f": two entries of {package.name} apply to this Python and platform")
        pin = f"{package.name}=={package.version}" if package.version else package.name
        archives: list[Any] = [*(package.wheels or ()), package.sdist, package.archive]
        hashes = sorted(f"{a}:{h}" for it in archives if it for a, h in it.hashes.items())
        requests[package.name] = Request(parse(pin, path.name), path.name, tuple(hashes))
    return RequirementsFile(path, tuple(requests.values()), complete=True)


def install_command(requirement: Requirement) -> str:
    """The command that installs a requirement."""
    return f"pip install {shlex.quote(without_marker(requirement))}"


def without_marker(requirement: Requirement) -> str:
    """A requirement without its marker: what pip install takes."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


@lru_cache(maxsize=4096)
def parse_installed(text: str) -> Requirement | None:
    """A requirement of an installed distribution; ``None`` if it is malformed (old ones are)."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def applies(
    requirement: Requirement, environment: Mapping[str, str], extras: Iterable[str] = ()
) -> str | None:
    """The extra under which a requirement applies (``""``: always); ``None`` if it does not."""
    if requirement.marker is None:
        return ""
    for extra in ("", *sorted(extras)):
        if requirement.marker.evaluate({**environment, "extra": extra}):
            return extra
    return None


def satisfies(installed: Installed, requirement: Requirement) -> bool:
    """Whether the installed version is in the requirement's range; a malformed version is."""
    version = installed.parsed_version
    return version is None or requirement.specifier.contains(version, prereleases=True)
