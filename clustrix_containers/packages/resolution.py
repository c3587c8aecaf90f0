"""Imports and the user's requests become installed distributions, each with its reasons.

A distribution without a RECORD (from before wheels, or a system's package) is taken from its
files: :attr:`Distribution.info` is then its ``.egg-info`` (a directory or a single file), and
``Installed.rows`` lists what its ``top_level.txt`` names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from packaging.utils import canonicalize_name

from clustrix_containers.capture.bundle import Distribution, Import, Note
from clustrix_containers.errors import DependencyError
from clustrix_containers.packages.wheels.wheel import same_version

from .closure import OWN, Closure, LeftOut, conda_problem, left_out
from .installed import Installed, search_path
from .requirements import (
    Request,
    RequirementsFile,
    applies,
    install_command,
    parse,
    read,
    satisfies,
    without_marker,
)

_TOOLS = frozenset({"pip", "setuptools", "wheel"})
_WHOLE = "the whole environment is requested"
_MOVED = {"distutils": "setuptools"}
"""Modules that a distribution provides under a name that is not in its files."""


@dataclass(frozen=True)
class Resolution:
    """What goes in, sorted by name; what could not be resolved; what was left out.

    ``hashes`` are the archives (``sha256:…``) that a requirements or lock file allows for
    a distribution; a name that is not in it may come from any.
    """

    distributions: tuple[Distribution, ...]
    notes: tuple[Note, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def resolve(
    imports: Sequence[Import],
    *,
    packages: Sequence[str] = (),
    everything: bool = False,
    requirements: Path | None = None,
    path: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolution:
    """The installed distributions that imports reach, with all that those require.

    ``packages`` are requirements (PEP 508) to add. ``everything`` takes all that is installed,
    except for pip, setuptools, wheel, this package and what only it requires. ``requirements`` is
    a requirements.txt or pylock.toml that lists what goes in: then an import that it does not cover is
    an error, and nothing is added silently. ``path`` is searched instead of ``sys.path``.
    ``environment`` overrides marker values (PEP 508) of the target, which is otherwise Linux
    with this Python.

    DependencyError: something is not installed here, malformed or comes from conda.
    """
    if path is None:
        check_environment()
    if everything and requirements is not None:
        raise DependencyError("the whole environment and a requirements file cannot both be given")
    values = {**_markers(), **(environment or {})}
    closure = Closure(search_path(path), values, _WHOLE)
    file = read(Path(requirements), values) if requirements is not None else None
    requests = [Request(parse(text, "packages="), "packages=") for text in packages]
    if file is None:
        _imports(closure, imports)
    hashes = _requests(closure, requests, rank=1)
    if file is not None:
        hashes |= _requests(closure, file.requests, rank=2, exact=file.complete)
    if everything:
        _whole_environment(closure)
    closure.run()
    if file is not None:
        _enforce(closure, file, {canonicalize_name(r.requirement.name) for r in requests})
        _imports(closure, imports, covered_by=file)
    closure.raise_problems()
    return _resolution(closure, hashes, () if everything else left_out(closure))


def check_environment(prefix: Path | None = None) -> None:
    """DependencyError if the interpreter under ``prefix`` (default: this one) is conda's."""
    where = Path(sys.prefix) if prefix is None else prefix
    if (where / "conda-meta").is_dir():
        message, hint = conda_problem(f"the environment {where}")
        raise DependencyError(message, hint=hint)


@lru_cache(maxsize=1)
def _markers() -> Mapping[str, str]:
    from packaging.markers import default_environment

    linux = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
    return {**{key: str(value) for key, value in default_environment().items()}, **linux}


def _requests(
    closure: Closure, requests: Sequence[Request], *, rank: int, exact: bool = False
) -> dict[str, tuple[str, ...]]:
    """Add what the user requests; the hashes that are allowed."""
    hashes: dict[str, tuple[str, ...]] = {}
    for request in requests:
        requirement = request.requirement
        name = canonicalize_name(requirement.name)
        if request.constraint or name == OWN or applies(requirement, closure.environment) is None:
            continue
        installed = closure.installed.by_name.get(name)
        sentence = f"{request.where} names {without_marker(requirement)}"
        command = install_command(requirement)
        if installed is None:
            closure.problem(f"{sentence}, which is not installed here", command)
        elif installed.editable:
            message = f"{request.where} names {name}, which is installed as editable: local source"
            hint = f"Name its modules with modules=[…], or install it: pip install PATH_OF_{name}"
            if request.where == "packages=":
                closure.problem(message, hint)
            else:
                closure.note(request.where, message, hint)
        elif not satisfies(installed, requirement) or (
            exact and not _is_pinned_version(installed, request)
        ):
            closure.problem(f"{sentence}, and {installed.version} is installed", command)
        else:
            closure.add(installed, sentence, rank=(0, rank), extras=requirement.extras)
            if request.hashes:
                hashes[name] = request.hashes
    return hashes


def _is_pinned_version(installed: Installed, request: Request) -> bool:
    """Whether a pin is exactly the installed version: 2.1+cpu satisfies ==2.1, and is another."""
    pins = request.requirement.specifier
    return all(same_version(pin.version, installed.version) for pin in pins)


def _whole_environment(closure: Closure) -> None:
    """Add all that is installed, except for tools and what only this package requires."""
    ours = Closure(closure.installed, closure.environment)
    own = closure.installed.by_name.get(OWN)
    if own is not None:
        ours.add(own, OWN)
        ours.run()
    for name, installed in sorted(closure.installed.by_name.items()):
        if name == OWN or name in _TOOLS or name in ours.nodes:
            continue
        if installed.editable:
            closure.note(
                _WHOLE,
                f"{name} is installed as editable: local source, not a distribution",
                "The local modules that the function reaches are sent as source.",
            )
        else:
            closure.add(installed, _WHOLE, rank=(0, 3))


def _imports(
    closure: Closure, imports: Sequence[Import], covered_by: RequirementsFile | None = None
) -> None:
    """Add what is imported; or, where a file lists what goes in, check that it is in."""
    ordered = sorted(imports, key=lambda i: (len(i.chain), natural_key(i.where), i.module))
    for position, item in enumerate(ordered):
        sentence = f"{item.where} imports {item.module}"
        if item.chain:
            sentence += f" (through {', '.join(item.chain)})"
        for installed in _owners(closure, item, sentence):
            rank = (0, 0, position)
            node = closure.nodes.get(installed.name)
            if covered_by is None:
                closure.add(installed, sentence, rank=rank)
            elif node is not None:
                node.reasons[sentence] = rank
            elif not item.optional:
                closure.problem(
                    f"{sentence}, which {installed} provides and {covered_by.path.name} does not name",
                    f"Add {installed.name} to {covered_by.path.name}, or packages=[{installed.name!r}].",
                )


def _owners(closure: Closure, item: Import, sentence: str) -> Sequence[Installed]:
    """The distributions that provide an import; none if it needs none or cannot be satisfied."""
    top = item.module.partition(".")[0]
    if top in sys.stdlib_module_names or canonicalize_name(top) == OWN:
        return ()
    owners, unowned = closure.installed.find(item.module)
    if owners:
        return [owner for owner in owners if not owner.editable and owner.name != OWN]
    moved = closure.installed.by_name.get(_MOVED.get(top, ""))
    if moved is not None:
        return (moved,)
    editable = closure.installed.by_name.get(canonicalize_name(top))
    if editable is not None and editable.editable:
        closure.note(
            item.where,
            f"{sentence}, which the editable install {editable.name} provides",
            f"Name it with modules=[{top!r}] if it is not sent as source.",
        )
    elif unowned is not None and not item.optional:
        closure.problem(
            f"{sentence}, and {unowned} belongs to no installed distribution",
            f"Send it as source: modules=[{top!r}].",
        )
    elif not item.optional:
        closure.problem(
            f"{sentence}, and no installed distribution provides it",
            f"pip install the distribution that provides {item.module}, or name local source: modules=[{top!r}].",
        )
    return ()


def _enforce(closure: Closure, file: RequirementsFile, added: set[str]) -> None:
    """Constraints hold; and of a lock file nothing else goes in."""
    for request in file.requests:
        requirement = request.requirement
        node = closure.nodes.get(canonicalize_name(requirement.name))
        if (
            request.constraint
            and node is not None
            and applies(requirement, closure.environment) is not None
            and not satisfies(node.installed, requirement)
        ):
            closure.problem(
                f"{request.where} allows {without_marker(requirement)}, "
                f"and {node.installed.version} is installed",
                install_command(requirement),
            )
    if not file.complete:
        return
    named = {canonicalize_name(item.requirement.name) for item in file.requests} | added
    for name, node in sorted(closure.nodes.items()):
        if name not in named and not node.chain[0].startswith("packages= "):
            closure.problem(
                f"{file.path.name} does not have {name}: {', '.join(node.chain)}",
                "Lock again: a lock file names all that its packages require.",
            )


def _resolution(
    closure: Closure, hashes: Mapping[str, tuple[str, ...]], left: tuple[LeftOut, ...]
) -> Resolution:
    nodes = dict(sorted(closure.nodes.items()))
    hashed = {name: hashes[name] for name in nodes if name in hashes}
    if hashed:
        closure.note(
            "requirements=",
            "its hashes are of archives: they are checked where a wheel is used, versions always",
            "Install with pip install --require-hashes to have the installed files checked too.",
        )
    distributions = tuple(
        Distribution(name, it.version, node.sentences(), it.root, it.info)
        for name, node in nodes.items()
        if (it := node.installed)
    )
    notes = tuple(sorted(closure.notes, key=lambda n: (natural_key(n.where), n.message)))
    return Resolution(distributions, notes, left, hashed)


def suggest(module: str, path: Sequence[str] | None = None) -> str | None:
    """What to do about a module that was missing in the container, in one sentence.

    ``None`` if no distribution could help: a module of the standard library, or of this package.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or canonicalize_name(top) == OWN:
        return None
    owners, unowned = search_path(path).find(module)
    if distributions := [owner for owner in owners if not owner.editable]:
        names = ", ".join(repr(owner.name) for owner in distributions)
        labels = " and ".join(map(str, distributions))
        return f"{labels}, installed here, provides {module}: add packages=[{names}]."
    if owners or unowned is not None:
        return f"{module} is local source here: add modules=[{top!r}]."
    return (
        f"No installed distribution provides {module}: pip install it here, "
        f"then add packages=[…] with its name."
    )


def natural_key(text: str) -> tuple[tuple[int, str], ...]:
    """A sort key in which ``a.py:9`` comes before ``a.py:10``."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    )
