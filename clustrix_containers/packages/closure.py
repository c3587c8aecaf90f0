"""From requested distributions to all that they require; and what could be used but was left out."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from clustrix_containers.capture.bundle import Note
from clustrix_containers.errors import DependencyError

from .installed import Installed, SearchPath
from .requirements import applies, install_command, parse_installed, satisfies

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OWN = "clustrix-containers"
"""Our own package: a layer of its own in every image, never a distribution in it."""

_DEVELOPMENT = re.compile(
    r"(?:.*-)?(?:tests?|testing|dev|develop|development|docs?|documentation|lint|linting|build|"
    r"typing|types?|mypy|check|checks|cover|coverage|benchmarks?|examples?|maintenance|release|"
    r"ci|tox|nox|qa|style|format|pre-commit|tutorials?|install|enabler)(?:-.*)?"
)
"""Extras of a distribution's own developers, and those that only repeat what it requires."""

_CALLS = {
    ("pandas", "pyarrow"): "read_parquet, read_feather or the pyarrow back end",
    ("pandas", "fastparquet"): "read_parquet",
    ("pandas", "openpyxl"): "read_excel or to_excel",
    ("pandas", "xlsxwriter"): "to_excel",
    ("pandas", "xlrd"): "read_excel on .xls files",
    ("pandas", "lxml"): "read_html or read_xml",
    ("pandas", "html5lib"): "read_html",
    ("pandas", "tables"): "read_hdf or to_hdf",
    ("pandas", "sqlalchemy"): "read_sql or to_sql",
    ("pandas", "jinja2"): "DataFrame.style or to_latex",
    ("pandas", "tabulate"): "to_markdown",
    ("pandas", "matplotlib"): "DataFrame.plot",
    ("pandas", "scipy"): "interpolate or a rank correlation",
    ("pandas", "numba"): "engine='numba'",
    ("pandas", "fsspec"): "a reader on a remote URL",
    ("pandas", "s3fs"): "a reader on s3://",
    ("pandas", "gcsfs"): "a reader on gs://",
    ("polars", "pyarrow"): "to_arrow, from_arrow or to_pandas",
    ("pyarrow", "pandas"): "to_pandas or from_pandas",
    ("pyarrow", "numpy"): "to_numpy",
    ("scikit-learn", "pandas"): "set_output(transform='pandas') or fetch_openml",
    ("scikit-learn", "matplotlib"): "a Display or plot_tree",
    ("torch", "numpy"): "Tensor.numpy or from_numpy",
    ("xarray", "netcdf4"): "open_dataset on netCDF files",
    ("xarray", "h5netcdf"): "open_dataset on netCDF files",
    ("xarray", "zarr"): "open_zarr",
    ("xarray", "dask"): "a method with chunks=",
    ("xarray", "matplotlib"): "plot",
    ("networkx", "matplotlib"): "draw",
    ("networkx", "scipy"): "an algorithm on sparse matrices",
    ("networkx", "numpy"): "a function on arrays",
    ("joblib", "numpy"): "dump or hash on arrays",
    ("joblib", "lz4"): "dump with compress='lz4'",
    ("seaborn", "scipy"): "clustermap or a density estimate",
    ("seaborn", "statsmodels"): "a robust or lowess regression plot",
    ("sympy", "numpy"): "lambdify",
    ("keras", "torch"): "the torch back end",
    ("keras", "tensorflow"): "the tensorflow back end",
    ("keras", "jax"): "the jax back end",
    ("transformers", "torch"): "a model",
    ("transformers", "accelerate"): "device_map=",
    ("imageio", "imageio-ffmpeg"): "imread or imwrite on videos",
}
"""Well-known pairs and the calls that need them; some are in no extra."""


@dataclass
class Node:
    """A distribution that goes in.

    ``chain`` is the shortest chain of sentences from the user's line to it, ``reasons`` has the
    rank of each sentence that names it, ``extras`` are those requested of it.
    """

    installed: Installed
    chain: tuple[str, ...]
    reasons: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extras: set[str] = field(default_factory=set)

    def sentences(self) -> tuple[str, ...]:
        """The reasons, best first."""
        return tuple(sorted(self.reasons, key=lambda text: (self.reasons[text], text)))


@dataclass
class Closure:
    """All that is required: traversed breadth first, so that the first chain found is a shortest.

    A ``problem`` is a message and the way out. Where a chain begins with ``lenient``, what is not
    installed is a note instead.
    """

    installed: SearchPath
    environment: Mapping[str, str]
    lenient: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    notes: dict[Note, None] = field(default_factory=dict)
    problems: dict[tuple[str, str], None] = field(default_factory=dict)
    _queue: deque[tuple[Installed, frozenset[str], tuple[str, ...]]] = field(default_factory=deque)

    def run(self) -> None:
        """Follow all requirements; what is missing is added to ``problems``."""
        while self._queue:
            installed, extras, chain = self._queue.popleft()
            for requirement, sentence in self._required(installed, extras):
                self._follow(installed, requirement, (*chain, sentence))

    def raise_problems(self) -> None:
        """One DependencyError for all problems, if there are any."""
        if self.problems:
            messages, hints = zip(*self.problems, strict=True)
            raise DependencyError("\n".join(messages), hint="\n  ".join(dict.fromkeys(hints)))

    def add(
        self,
        installed: Installed,
        *chain: str,
        rank: tuple[int, ...] = (0,),
        extras: Iterable[str] = (),
    ) -> None:
        """Add a distribution; ``chain`` are the sentences that lead to it."""
        if installed.installer == "conda":
            self.problem(*conda_problem(str(installed)))
            return
        requested = frozenset(map(canonicalize_name, extras))
        node = self.nodes.get(installed.name)
        if node is None:
            node = self.nodes[installed.name] = Node(installed, chain)
            self._queue.append((installed, requested, chain))
        elif requested - node.extras:
            self._queue.append((installed, requested - node.extras, chain))
        for extra in sorted(requested - node.extras - set(installed.extras)):
            self.note(chain[-1], f"{installed} has no extra {extra!r}", "Check its spelling.")
        node.extras |= requested
        node.reasons[chain[-1]] = min(rank, node.reasons.get(chain[-1], rank))

    def problem(self, message: str, hint: str) -> None:
        self.problems[message, hint] = None

    def note(self, where: str, message: str, hint: str) -> None:
        self.notes[Note(where, message, hint)] = None

    def _required(
        self, installed: Installed, extras: frozenset[str]
    ) -> Iterator[tuple[Requirement, str]]:
        """The requirements that apply with these extras, each with its sentence."""
        for text in installed.requires:
            if not extras and "extra ==" in text and " or " not in text:
                continue  # parsing costs more than everything else here
            requirement = parse_installed(text)
            if requirement is None:
                self.note(
                    str(installed),
                    f"its requirement {text!r} is malformed",
                    "Name what it needs with packages=[…].",
                )
                continue
            extra = applies(requirement, self.environment, extras)
            if extra is not None:
                suffix = f" (extra {extra})" if extra else ""
                head = str(requirement).split(";")[0].strip()
                yield requirement, f"{installed} requires {head}{suffix}"

    def _follow(self, by: Installed, requirement: Requirement, chain: tuple[str, ...]) -> None:
        name = canonicalize_name(requirement.name)
        if name == OWN:
            return
        if name == by.name:
            new = frozenset(map(canonicalize_name, requirement.extras)) - self.nodes[name].extras
            if new:
                self.nodes[name].extras |= new
                self._queue.append((by, new, chain[:-1]))
            return
        installed = self.installed.by_name.get(name)
        if installed is None and chain[0] == self.lenient:
            self.note(
                chain[-2], f"{chain[-1]}, which is not installed here", install_command(requirement)
            )
        elif installed is None:
            message = f"{requirement.name} is not installed here: {', '.join(chain)}"
            self.problem(message, install_command(requirement))
        elif installed.editable:
            self.note(
                str(by),
                f"{chain[-1]}, which is installed as editable: local source, not a distribution",
                f"Name it with modules=[{name.replace('-', '_')!r}] if the function needs it.",
            )
        else:
            if not satisfies(installed, requirement):
                self.note(
                    str(by),
                    f"{chain[-1]}, and {installed.version} is installed",
                    f"{install_command(requirement)} if the function misbehaves.",
                )
            self.add(installed, *chain, rank=(1, len(chain)), extras=requirement.extras)


def conda_problem(subject: str) -> tuple[str, str]:
    """That conda environments are not supported, and the way out."""
    return (
        f"{subject} comes from conda, and conda environments are not supported yet",
        "Make a virtual environment (python -m venv, or uv venv) and install the packages in it.",
    )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An installed distribution that does not go in and that ``by`` could use.

    ``extras`` of ``by`` name it (none: a well-known pair); ``message`` is the sentence for the user.
    """

    name: str
    by: str
    extras: tuple[str, ...]
    message: str


def left_out(closure: Closure) -> tuple[LeftOut, ...]:
    """The installed optional back ends of what goes in, sorted by name.

    Extras count only of what the user's own code names: the rest is the business of
    whoever requires it. Well-known pairs count always.
    """
    found: dict[str, LeftOut] = {}
    for by, node in sorted(closure.nodes.items()):
        pairs: dict[str, tuple[str, ...]] = {back: () for front, back in _CALLS if front == by}
        if any(rank[0] == 0 for rank in node.reasons.values()):
            pairs |= _optional(closure, node.installed)
        for name, extras in pairs.items():
            installed = closure.installed.by_name.get(name)
            if installed is None or installed.editable or name in closure.nodes or name == OWN:
                continue
            call = _CALLS.get((by, name))
            # A known call is a better hint than an extra.
            if name not in found or (call and (found[name].by, name) not in _CALLS):
                extra = f" (extra {', '.join(extras)})" if extras else ""
                when = f"if you call {call}" if call else f"if the function needs it through {by}"
                message = f"{installed} is installed and {by} can use it{extra}: add packages=[{name!r}] {when}"
                found[name] = LeftOut(name, by, extras, message)
    return tuple(left for _, left in sorted(found.items()))


def _optional(closure: Closure, own: Installed) -> dict[str, tuple[str, ...]]:
    """Installed distributions that extras of a distribution name, with those extras."""
    found: dict[str, set[str]] = {}
    aliases: list[tuple[set[str], set[str]]] = []
    for text in own.requires:
        head = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", text)
        if "extra" not in text or head is None:
            continue
        name = canonicalize_name(head[1])
        installed = closure.installed.by_name.get(name)
        # Parsing costs most, so it comes last.
        if name != own.name and (installed is None or name in closure.nodes):
            continue
        requirement = parse_installed(text)
        if requirement is None or requirement.marker is None:
            continue
        if name != own.name and installed and not satisfies(installed, requirement):
            continue
        if applies(requirement, closure.environment) is not None:
            continue
        extras = {
            extra
            for extra in own.extras
            if extra in canonicalize_name(text)
            and applies(requirement, closure.environment, (extra,)) is not None
        }
        if name == own.name:
            aliases.append((extras, set(map(canonicalize_name, requirement.extras))))
        else:
            found.setdefault(name, set()).update(extras)
    for extras, others in aliases:
        for named in found.values():
            if named & others:
                named |= extras
    relevant = {name: _relevant(extras) for name, extras in sorted(found.items())}
    return {name: extras for name, extras in relevant.items() if extras}


def _relevant(extras: set[str]) -> tuple[str, ...]:
    """The extras worth naming, without those of a distribution's own developers."""
    real = {extra for extra in extras if extra != "all" and not _DEVELOPMENT.fullmatch(extra)}
    return tuple(sorted(real)) or (("all",) if extras == {"all"} else ())
