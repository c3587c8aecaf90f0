"""What was left out though it is installed, and what to add when a module is missing remotely."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .closure import OWN, Closure, Node, label, parsed, satisfies
from .installed import Installed, index, normalize

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


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An installed distribution that does not go in and that ``by`` could use.

    ``extras`` of ``by`` name it (none: a well-known pair); ``message`` is the sentence for the user.
    """

    name: str
    version: str
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
        if node.asked:
            pairs |= _optional(closure, node)
        for name, extras in pairs.items():
            installed = closure.index.by_name.get(name)
            if installed is None or installed.editable or name in closure.nodes or name == OWN:
                continue
            left = _left_out(installed, by, extras)
            # A pair whose call is known says more than an extra.
            if name not in found or ((by, name) in _CALLS) > ((found[name].by, name) in _CALLS):
                found[name] = left
    return tuple(left for _, left in sorted(found.items()))


def _left_out(installed: Installed, by: str, extras: tuple[str, ...]) -> LeftOut:
    call = _CALLS.get((by, installed.name))
    extra = f" (extra {', '.join(extras)})" if extras else ""
    when = f"if you call {call}" if call else f"if the function needs it through {by}"
    message = f"{label(installed)} is installed and {by} can use it{extra}: add packages=[{installed.name!r}] {when}"
    return LeftOut(installed.name, installed.version, by, extras, message)


def _optional(closure: Closure, node: Node) -> dict[str, tuple[str, ...]]:
    """Installed distributions that extras of a distribution name, with those extras."""
    found: dict[str, set[str]] = {}
    aliases: list[tuple[str, set[str]]] = []
    for name, extras, others in _extras(closure, node.installed):
        if name == node.installed.name:
            aliases += [(extra, others) for extra in extras]
        else:
            found.setdefault(name, set()).update(extras)
    for extra, others in aliases:
        for extras in found.values():
            if extras & others:
                extras.add(extra)
    named = {name: _offered(extras) for name, extras in sorted(found.items())}
    return {name: extras for name, extras in named.items() if extras}


def _offered(extras: set[str]) -> tuple[str, ...]:
    """The extras that are worth a word. What only developers' extras name is a tool of theirs."""
    real = {extra for extra in extras if extra != "all" and not _DEVELOPMENT.fullmatch(extra)}
    return tuple(sorted(real)) or (("all",) if extras == {"all"} else ())


def _extras(closure: Closure, installed: Installed) -> Iterator[tuple[str, set[str], set[str]]]:
    """Of each optional requirement: name, the extras under which it holds, the extras that it asks for."""
    for text in installed.requires:
        head = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", text)
        if "extra" not in text or head is None:
            continue
        name = normalize(head[1])
        if name != installed.name and (name not in closure.index.by_name or name in closure.nodes):
            continue
        requirement = parsed(text)
        if requirement is None or requirement.marker is None:
            continue
        if name != installed.name and not satisfies(closure.index.by_name[name], requirement):
            continue
        if requirement.marker.evaluate({**closure.environment, "extra": ""}):
            continue
        extras = {
            extra
            for extra in installed.extras
            if extra in normalize(text)
            and requirement.marker.evaluate({**closure.environment, "extra": extra})
        }
        if extras:
            yield name, extras, {normalize(extra) for extra in requirement.extras}


def suggest(module: str, path: Sequence[str] | None = None) -> str | None:
    """What to do about a module that was missing in the container, in one sentence.

    ``None`` if no distribution could help: a module of the standard library, or of this package.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or normalize(top) == OWN:
        return None
    found = index(path).find(module)
    owners = [owner for owner in found.owners if not owner.editable]
    if owners:
        names = ", ".join(repr(owner.name) for owner in owners)
        labels = " and ".join(map(label, owners))
        return f"{labels}, installed here, provides {module}: add packages=[{names}]."
    if found.owners or found.loose is not None:
        return f"{module} is local source here: add modules=[{top!r}]."
    return (
        f"No installed distribution provides {module}: pip install it here, "
        f"then add packages=[…] with its name."
    )
