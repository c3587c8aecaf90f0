"""From the distributions that are asked for to all that they require, each with its reasons."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from clustrix_containers.capture.bundle import Note
from clustrix_containers.errors import DependencyError

from .installed import Index, Installed, normalize
from .requirements import quoted

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OWN = "clustrix-containers"
"""Our own package: a layer of its own in every image, never a distribution in it."""


@dataclass
class Node:
    """A distribution that goes in: its shortest ``chain`` of sentences from the user's line,
    all its ``reasons`` as ``(rank, sentence)``, and the extras of it that are asked for."""

    installed: Installed
    chain: tuple[str, ...]
    reasons: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extras: set[str] = field(default_factory=set)

    @property
    def asked(self) -> bool:
        """Whether the user's own line names it."""
        return any(rank[0] == 0 for rank in self.reasons.values())

    def sentences(self) -> tuple[str, ...]:
        """The reasons, best first."""
        return tuple(sorted(self.reasons, key=lambda text: (self.reasons[text], text)))


@dataclass
class Problem:
    """Why the whole cannot be: what, and the way out."""

    message: str
    hint: str


@dataclass
class Closure:
    """Breadth first, so that the first chain that arrives is a shortest one."""

    index: Index
    environment: Mapping[str, str]
    nodes: dict[str, Node] = field(default_factory=dict)
    notes: dict[Note, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    forgiving: frozenset[str] = frozenset()
    """First sentences under which a requirement that is not installed is a note, not a problem."""
    _queue: deque[tuple[Installed, frozenset[str], tuple[str, ...]]] = field(default_factory=deque)

    def root(
        self,
        installed: Installed,
        sentence: str,
        *,
        rank: tuple[int, ...] = (0,),
        extras: Iterable[str] = (),
    ) -> None:
        """Ask for a distribution, because of what ``sentence`` says."""
        self._reach(installed, extras, (sentence,), rank)

    def run(self) -> None:
        """Follow all requirements. What is missing is then in ``problems``."""
        while self._queue:
            installed, extras, chain = self._queue.popleft()
            for requirement, sentence in self._required(installed, extras):
                self._follow(installed, requirement, (*chain, sentence))

    def raise_problems(self) -> None:
        """One DependencyError for all problems, if there are any."""
        problems = list({(p.message, p.hint): p for p in self.problems}.values())
        if problems:
            raise DependencyError(
                "\n".join(problem.message for problem in problems),
                hint="\n  ".join(dict.fromkeys(problem.hint for problem in problems)),
            )

    def _reach(
        self,
        installed: Installed,
        extras: Iterable[str],
        chain: tuple[str, ...],
        rank: tuple[int, ...],
    ) -> None:
        if installed.installer == "conda":
            self.problems.append(conda(f"{installed.name} {installed.version}"))
            return
        node = self.nodes.get(installed.name)
        wanted = frozenset(map(normalize, extras))
        if node is None:
            node = self.nodes[installed.name] = Node(installed, chain)
            self._queue.append((installed, wanted, chain))
        elif wanted - node.extras:
            self._queue.append((installed, wanted - node.extras, chain))
        for extra in sorted(wanted - node.extras - set(installed.extras)):
            self.note(
                chain[-1], f"{label(installed)} has no extra {extra!r}", "Check its spelling."
            )
        node.extras |= wanted
        node.reasons[chain[-1]] = min(rank, node.reasons.get(chain[-1], rank))

    def note(self, where: str, message: str, hint: str) -> None:
        self.notes[Note(where, message, hint)] = None

    def _required(
        self, installed: Installed, extras: frozenset[str]
    ) -> Iterator[tuple[Requirement, str]]:
        """The requirements that hold here with these extras, each with its sentence."""
        for text in installed.requires:
            if not extras and "extra ==" in text and " or " not in text:
                continue  # parsing costs more than everything else here
            requirement = parsed(text)
            if requirement is None:
                self.note(
                    label(installed),
                    f"its requirement {text!r} is malformed",
                    "Name what it needs.",
                )
                continue
            held = holds(requirement, self.environment, extras)
            if held is not None:
                suffix = f" (extra {held})" if held else ""
                bare = str(requirement).split(";")[0].strip()
                yield requirement, f"{label(installed)} requires {bare}{suffix}"

    def _follow(self, by: Installed, requirement: Requirement, chain: tuple[str, ...]) -> None:
        name = normalize(requirement.name)
        if name == OWN:
            return
        if name == by.name:
            if new := self._new_extras(by, requirement):
                self._queue.append((by, new, chain[:-1]))
            return
        installed = self.index.by_name.get(name)
        if installed is None:
            self._missing(requirement, chain)
        elif installed.editable:
            self.note(
                label(by),
                f"{chain[-1]}, which is installed as editable: local source, not a distribution",
                f"Name it with modules=[{name.replace('-', '_')!r}] if the function needs it.",
            )
        else:
            if not satisfies(installed, requirement):
                self.note(
                    label(by),
                    f"{chain[-1]}, and {installed.version} is installed",
                    f"{quoted(bare(requirement))} if the function misbehaves.",
                )
            self._reach(installed, requirement.extras, chain, (1, len(chain)))

    def _new_extras(self, installed: Installed, requirement: Requirement) -> frozenset[str]:
        node = self.nodes[installed.name]
        new = frozenset(map(normalize, requirement.extras)) - node.extras
        node.extras |= new
        return new

    def _missing(self, requirement: Requirement, chain: tuple[str, ...]) -> None:
        command = quoted(bare(requirement))
        if chain[0] in self.forgiving:
            self.note(chain[-2], f"{chain[-1]}, which is not installed here", command)
            return
        self.problems.append(
            Problem(f"{requirement.name} is not installed here: {', '.join(chain)}", command)
        )


def label(installed: Installed) -> str:
    """A distribution as a person names it: ``pandas 3.1.1``."""
    return f"{installed.name} {installed.version}"


def conda(what: str) -> Problem:
    """What is said of everything that comes from conda."""
    return Problem(
        f"{what} comes from conda, and conda environments are not supported yet",
        "Make a virtual environment (python -m venv, or uv venv) and install the packages in it.",
    )


def bare(requirement: Requirement) -> str:
    """A requirement without its marker: what pip install takes."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


@lru_cache(maxsize=4096)
def parsed(text: str) -> Requirement | None:
    """A requirement of an installed distribution; ``None`` if it is malformed (old ones are)."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def holds(
    requirement: Requirement, environment: Mapping[str, str], extras: Iterable[str] = ()
) -> str | None:
    """Whether a requirement's marker holds: ``""`` without any extra, or the extra; else ``None``."""
    if requirement.marker is None:
        return ""
    for extra in ("", *sorted(extras)):
        if requirement.marker.evaluate({**environment, "extra": extra}):
            return extra
    return None


def satisfies(installed: Installed, requirement: Requirement) -> bool:
    """Whether the installed version is in the requirement's range (an old, malformed one is)."""
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(installed.version)
    except InvalidVersion:
        return True
    return requirement.specifier.contains(version, prereleases=True)


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A sort key in which ``a.py:9`` comes before ``a.py:10``."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    )
