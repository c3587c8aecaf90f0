"""Import names and the user's wishes become installed distributions, each with its reasons.

A distribution without a RECORD (from before wheels, or a distributor's) is taken as it
lies there: :attr:`Distribution.info` is then its ``.egg-info`` (a directory or a single
file), and ``installed.recorded`` lists what its ``top_level.txt`` names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from clustrix_containers.capture.bundle import Distribution, Import, Note
from clustrix_containers.errors import DependencyError

from .closure import OWN, Closure, Problem, bare, conda, holds, label, natural, satisfies
from .installed import Installed, index, normalize
from .optional import LeftOut, left_out, suggest
from .requirements import Handed, Named, parse, quoted, read

__all__ = ["LeftOut", "Resolution", "check_environment", "resolve", "suggest"]

_TOOLS = frozenset({"pip", "setuptools", "wheel"})
_WHOLE = "the whole environment is asked for"
_MOVED = {"distutils": "setuptools"}
"""Modules that a distribution provides under a name that is not in its files."""


@dataclass(frozen=True)
class Resolution:
    """What goes in, sorted by name; what could not be settled; what was left out.

    ``hashes`` are the archives (``sha256:…``) that a requirements or lock file allows for
    a distribution; a name that is not in it may come from any.
    """

    distributions: tuple[Distribution, ...]
    notes: tuple[Note, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def why(self, name: str) -> tuple[str, ...]:
        """The shortest chain of sentences from the user's line to a distribution; empty if it is not in."""
        return self.chains.get(normalize(name), ())


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
    a requirements.txt or pylock.toml that says what goes in: then an import that it does not cover is
    an error, and nothing is added silently. ``path`` is searched instead of ``sys.path``.
    ``environment`` overrides marker values (PEP 508) of the target, which is otherwise Linux
    with this Python.

    DependencyError: something is not installed here, malformed or comes from conda.
    """
    if path is None:
        check_environment()
    if everything and requirements is not None:
        raise DependencyError("the whole environment and a requirements file are both asked for")
    values = {**_markers(), **(environment or {})}
    closure = Closure(index(path), values, forgiving=frozenset({_WHOLE}))
    handed = read(Path(requirements), values) if requirements is not None else None
    wishes = [Named(parse(text, "packages="), "packages=") for text in packages]
    if handed is None:
        _imports(closure, imports)
    hashes = _wishes(closure, wishes, rank=1)
    if handed is not None:
        hashes |= _wishes(closure, handed.named, rank=2, exact=handed.complete)
    if everything:
        _whole(closure)
    closure.run()
    if handed is not None:
        _obey(closure, handed, {normalize(w.requirement.name) for w in wishes})
        _imports(closure, imports, covered=handed)
    closure.raise_problems()
    return _resolution(closure, hashes, () if everything else left_out(closure))


def check_environment(prefix: Path | None = None) -> None:
    """DependencyError if the interpreter under ``prefix`` (default: this one) is conda's."""
    where = Path(sys.prefix) if prefix is None else prefix
    if (where / "conda-meta").is_dir():
        problem = conda(f"the environment {where}")
        raise DependencyError(problem.message, hint=problem.hint)


@lru_cache(maxsize=1)
def _markers() -> Mapping[str, str]:
    from packaging.markers import default_environment

    linux = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
    return {**{key: str(value) for key, value in default_environment().items()}, **linux}


def _wishes(
    closure: Closure, wishes: Sequence[Named], *, rank: int, exact: bool = False
) -> dict[str, tuple[str, ...]]:
    """Ask for what the user names; the hashes that they allow."""
    hashes = {}
    for wish in wishes:
        requirement = wish.requirement
        if holds(requirement, closure.environment) is None:
            continue
        name = normalize(requirement.name)
        installed = closure.index.by_name.get(name)
        sentence = f"{wish.where} names {bare(requirement)}"
        if name == OWN:
            continue
        if installed is None:
            closure.problems.append(
                Problem(f"{sentence}, which is not installed here", quoted(bare(requirement)))
            )
        elif installed.editable:
            _editable(closure, wish, installed)
        elif not satisfies(installed, requirement) or (exact and not _equal(installed, wish)):
            closure.problems.append(
                Problem(
                    f"{sentence}, and {installed.version} is installed", quoted(bare(requirement))
                )
            )
        else:
            closure.root(installed, sentence, rank=(0, rank), extras=requirement.extras)
            if wish.hashes:
                hashes[name] = wish.hashes
    return hashes


def _equal(installed: Installed, wish: Named) -> bool:
    """Whether a pin is the installed version to the letter: 2.1+cpu satisfies ==2.1, and is not it."""
    from packaging.version import InvalidVersion, Version

    pins = [spec.version for spec in wish.requirement.specifier]
    try:
        return all(Version(pin) == Version(installed.version) for pin in pins)
    except InvalidVersion:
        return pins == [installed.version]


def _editable(closure: Closure, wish: Named, installed: Installed) -> None:
    message = f"{wish.where} names {installed.name}, which is installed as editable: local source"
    hint = f"Name its modules with modules=[…], or install it: pip install PATH_OF_{installed.name}"
    if wish.where == "packages=":
        closure.problems.append(Problem(message, hint))
    else:
        closure.note(wish.where, message, hint)


def _whole(closure: Closure) -> None:
    """Ask for all that is installed, but for tools and what is there only because we are."""
    ours = Closure(closure.index, closure.environment)
    own = closure.index.by_name.get(OWN)
    if own is not None:
        ours.root(own, OWN)
        ours.run()
    for name, installed in sorted(closure.index.by_name.items()):
        if name == OWN or name in _TOOLS or name in ours.nodes:
            continue
        if installed.editable:
            closure.note(
                _WHOLE,
                f"{name} is installed as editable: local source, not a distribution",
                "The local modules that the function reaches travel by themselves.",
            )
        else:
            closure.root(installed, _WHOLE, rank=(0, 3))


def _imports(closure: Closure, imports: Sequence[Import], covered: Handed | None = None) -> None:
    """Ask for what is imported; or, where a file says what goes in, check that it is in."""
    ordered = sorted(imports, key=lambda i: (len(i.chain), natural(i.where), i.module))
    for position, item in enumerate(ordered):
        sentence = f"{item.where} imports {item.module}"
        if item.chain:
            sentence += f" (through {', '.join(item.chain)})"
        for installed in _owners(closure, item, sentence):
            rank = (0, 0, position)
            node = closure.nodes.get(installed.name)
            if covered is None:
                closure.root(installed, sentence, rank=rank)
            elif node is not None:
                node.reasons[sentence] = rank
            elif not item.optional:
                closure.problems.append(
                    Problem(
                        f"{sentence}, which {label(installed)} provides and "
                        f"{covered.path.name} does not name",
                        f"Add {installed.name} to {covered.path.name}, or packages=[{installed.name!r}].",
                    )
                )


def _owners(closure: Closure, item: Import, sentence: str) -> Sequence[Installed]:
    """The distributions that provide an import; none if it needs none or cannot be satisfied."""
    top = item.module.partition(".")[0]
    if top in sys.stdlib_module_names or normalize(top) == OWN:
        return ()
    found = closure.index.find(item.module)
    owners = [owner for owner in found.owners if not owner.editable and owner.name != OWN]
    if owners or found.owners:
        return owners
    moved = closure.index.by_name.get(_MOVED.get(top, ""))
    if moved is not None:
        return (moved,)
    editable = closure.index.by_name.get(normalize(top))
    if editable is not None and editable.editable:
        closure.note(
            item.where,
            f"{sentence}, which the editable install {editable.name} provides",
            f"Name it with modules=[{top!r}] if it does not travel by itself.",
        )
    elif not item.optional:
        closure.problems.append(_unowned(item, sentence, found.loose))
    return ()


def _unowned(item: Import, sentence: str, loose: Path | None) -> Problem:
    top = item.module.partition(".")[0]
    if loose is not None:
        return Problem(
            f"{sentence}, and {loose} belongs to no installed distribution",
            f"Send it as source: modules=[{top!r}].",
        )
    return Problem(
        f"{sentence}, and no installed distribution provides it",
        f"pip install the distribution that provides {item.module}, or name local source: modules=[{top!r}].",
    )


def _obey(closure: Closure, handed: Handed, added: set[str]) -> None:
    """Constraints hold; and nothing that a lock file does not name goes in with what it names."""
    for constraint in handed.constraints:
        node = closure.nodes.get(normalize(constraint.requirement.name))
        if (
            node is not None
            and holds(constraint.requirement, closure.environment) is not None
            and not satisfies(node.installed, constraint.requirement)
        ):
            closure.problems.append(
                Problem(
                    f"{constraint.where} allows {bare(constraint.requirement)}, "
                    f"and {node.installed.version} is installed",
                    quoted(bare(constraint.requirement)),
                )
            )
    if not handed.complete:
        return
    named = {normalize(item.requirement.name) for item in handed.named} | added
    for name, node in sorted(closure.nodes.items()):
        if name not in named and not node.chain[0].startswith("packages= "):
            closure.problems.append(
                Problem(
                    f"{handed.path.name} does not have {name}: {', '.join(node.chain)}",
                    "Lock again: a lock file names all that its packages require.",
                )
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
        Distribution(
            name,
            node.installed.version,
            node.sentences(),
            node.installed.root,
            node.installed.info,
        )
        for name, node in nodes.items()
    )
    notes = tuple(sorted(closure.notes, key=lambda n: (natural(n.where), n.message)))
    chains = {
        name: (node.sentences()[0],) if len(node.chain) == 1 else node.chain
        for name, node in nodes.items()
    }
    return Resolution(distributions, notes, left, hashed, chains)
