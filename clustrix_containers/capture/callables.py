"""capture: a callable becomes a Bundle."""

from __future__ import annotations

import functools
import inspect
import io
import sys
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Platform
from clustrix_containers.worker import contract

from . import datafiles, scripts, sources
from . import unpicklable as blame
from .bundle import Bundle, Entry
from .imports import Walk
from .modules import Finder, absolute
from .secrets import find_secret

_FUNCTION = "the function"


def capture(
    function: Callable[..., Any],
    *,
    modules: Sequence[str] = (),
    files: Sequence[str | Path] = (),
    references: Collection[str] = (),
    platform: Platform | None = None,
    allow_secrets: bool = False,
) -> Bundle:
    """Decide how ``function`` travels, and find the local files and imports that it reaches.

    ``modules``: more module names (of a local package, all that is below it). ``files``: data
    files and directories. ``references``: the modules that pickled arguments refer to.
    ``platform``: what compiled local modules must run on; Linux on this machine's processor
    by default. Raises CaptureError for what cannot travel (a secret too, unless
    ``allow_secrets``) and DependencyError for an import that resolves to nothing.
    """
    found = _find(function)
    walk = Walk(Finder(), platform or Platform.host(), allow_secrets)
    pickled: bytes | None = None
    wanted = set(references)
    if found.kind == "value":
        walk.whole()
        pickled, names = _by_value(found.target, walk, allow_secrets)
        for name in sorted(names - {contract.MAIN}):
            walk.module(name, _FUNCTION, ())
        wanted |= names & {contract.MAIN}
    else:
        # What the arguments' modules hold may be called through the arguments.
        if wanted:
            walk.whole(*wanted)
        walk.use(found.qualname.split("."))
        _entry_lines(found, walk)
        if found.kind == "module":
            walk.module(found.module, _FUNCTION, ())
    main = _script(found, wanted)
    script = None if main is None else walk.script(main, "the script")
    for name in sorted(wanted - {contract.MAIN}):
        walk.module(name, "the arguments", (), sure=True)
    for name in modules:
        walk.tree(name, "the argument modules=")
    for file in datafiles.named(files, _project(found)):
        walk.add(file)
    walk.finish()
    return Bundle(
        Entry(found.kind, found.module, found.qualname, blame.name_of(function), script),
        tuple(walk.files[path] for path in sorted(walk.files)),
        tuple(walk.imports[name] for name in sorted(walk.imports)),
        tuple(walk.notes[key] for key in sorted(walk.notes)),
        pickled,
        main,
    )


def _script(found: _Found, wanted: set[str]) -> Path | None:
    """The script that must be there, as the function's own or for what refers to it."""
    if found.kind != "script" and contract.MAIN not in wanted:
        return None
    main = found.script or scripts.current().path or scripts.loaded_script(contract.MAIN)
    if main is None:
        raise CaptureError(
            "the arguments refer to a script, and there is none in this session",
            hint="Pass what the image's own script defines, or move it to a module.",
        )
    return main


@dataclass(frozen=True)
class _Found:
    kind: Any
    module: str
    qualname: str
    target: Any
    script: Path | None = None


def _find(function: Callable[..., Any]) -> _Found:
    """By which name the container finds the callable, if by any."""
    if not callable(function):
        raise CaptureError(
            f"{blame.name_of(function)!r} is not callable", hint="Hand in a function."
        )
    target = _plain(function)
    owner = getattr(target, "__self__", None)
    if isinstance(target, types.MethodType) and isinstance(owner, type):
        # A classmethod, perhaps an inherited one: found through the class it was taken from.
        name, qualname = owner.__module__, f"{owner.__qualname__}.{target.__name__}"
    else:
        name = getattr(target, "__module__", None) or ""
        qualname = getattr(target, "__qualname__", None) or ""
    value = _Found("value", scripts.travel_name(name) or "", qualname, target)
    if not isinstance(name, str) or not qualname or "<" in qualname:
        return value
    if isinstance(target, types.MethodType) and not isinstance(owner, type):
        return value
    return _by_name(name, qualname, target) or value


def _by_name(name: str, qualname: str, target: Any) -> _Found | None:
    from . import reduction

    module = sys.modules.get(name)
    travel = scripts.travel_name(name)
    if module is None or travel is None or not reduction.importable(module):
        return None
    if not _leads_to(reduction.find_name(module, qualname), target):
        return None
    if name in scripts.MAIN_NAMES:
        names = scripts.bound_names(name)
        if names is not None and qualname.partition(".")[0] not in names[0]:
            return None
    script = scripts.script_of(name) if travel == contract.MAIN else None
    return _Found("script" if script else "module", travel, qualname, target, script)


def _plain(function: Any) -> Any:
    """What our own decorator holds."""
    while hasattr(type(function), "__clustrix_function__"):
        function = function.__wrapped__
    return function


def _leads_to(found: Any, target: Any) -> bool:
    """Whether what stands at a name is the target, or wraps it."""
    for _ in range(100):
        if found is None:
            return False
        if found is target or (isinstance(target, types.MethodType) and found == target):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def _code_of(target: Any) -> types.CodeType | None:
    function = inspect.unwrap(target) if callable(target) else target
    return getattr(getattr(function, "__func__", function), "__code__", None)


def _entry_lines(found: _Found, walk: Walk) -> None:
    code = _code_of(found.target)
    if code is not None:
        path = found.script.name if found.script else walk.finder.find(found.module).path
        walk.entry_lines(path, sources.lines_of(code))
        _note_guarded(found, code, path, walk)


def _note_guarded(found: _Found, code: types.CodeType, path: str, walk: Walk) -> None:
    """Globals of the function that are set only where the container does not come."""
    names = scripts.bound_names(getattr(found.target, "__module__", None) or "")
    bound, guarded = names or (frozenset(), frozenset())
    for variable in dict.fromkeys(blame.globals_used(code)):
        if variable in guarded - bound:
            walk.note(
                f"{path}:{code.co_firstlineno}",
                f"{blame.name_of(found.target)} uses {variable}, which is set only under "
                'if __name__ == "__main__", and that does not run in the container',
                "Set it outside, or pass it as an argument.",
            )


def _by_value(target: Any, walk: Walk, allow_secrets: bool) -> tuple[bytes, set[str]]:
    """The normalised pickle, and the modules it refers to; its source goes into ``walk``."""
    from . import reduction, stable

    places = sources.Sources()
    file = io.BytesIO()
    try:
        pickler = stable.StablePickler(file, places.place)
        try:
            pickler.dump(target)
        except RecursionError:
            file = io.BytesIO()
            pickler = reduction.FastPickler(file, places.place)
            pickler.dump(target)
    except Exception as error:
        raise _uncapturable(target, error) from error
    data = file.getvalue()
    if not allow_secrets:
        _refuse_secret(target, data)
    for path, content, name in places.cells(pickler.codes):
        walk.source(path, content, name, f"source of {blame.name_of(target)}, for tracebacks")
    _follow_codes(pickler.codes, target, walk)
    return data, set(reduction.third_party_or_local(pickler.references))


def _follow_codes(codes: list[types.CodeType], target: Any, walk: Walk) -> None:
    """The source of by-value code that lies in local modules, and what its bodies import."""
    function = getattr(target, "__func__", target)
    package = sources.package_of(function if isinstance(function, types.FunctionType) else None)
    for code in codes:
        place = sources.known_place(code.co_filename)
        local = place is not None and place.startswith(contract.CODE + "/")
        name = place[len(contract.CODE) + 1 :] if local and place else code.co_filename
        if place is not None and not local:
            continue
        if local and Path(code.co_filename).is_file():
            content = Path(code.co_filename).read_bytes()
            walk.source(name, content, code.co_filename, "source, for tracebacks")
        walk.entry_lines(name, sources.lines_of(code))
        for statement in sources.imports_of(code):
            walk.statement(statement, package, name, (blame.name_of(target),))


def _uncapturable(target: Any, error: Exception) -> CaptureError:
    from . import reduction

    def guilty(value: Any) -> bool:
        try:
            reduction.FastPickler(io.BytesIO(), str).dump(value)
        except Exception:
            return True
        return False

    name, culprit = blame.find(target, f"'{blame.name_of(target)}'", guilty)
    return CaptureError(
        f"{name} is {reduction.describe(culprit)}, which cannot travel to another machine",
        hint="Make it inside the function, or pass what it is made from (a path, an address) "
        f"as an argument. ({type(error).__name__}: {error})",
        variable=name,
    )


def _refuse_secret(target: Any, data: bytes) -> None:
    from . import reduction

    kind = find_secret(data)
    if kind is None:
        return

    def guilty(value: Any) -> bool:
        file = io.BytesIO()
        try:
            reduction.FastPickler(file, str).dump(value)
        except Exception:
            return False
        return find_secret(file.getvalue()) is not None

    name, _ = blame.find(target, f"'{blame.name_of(target)}'", guilty)
    raise CaptureError(
        f"{name} holds {kind}, and an image can be read by whoever can pull it",
        hint="Read it from the environment when the function runs. If it is no secret, "
        "say allow_secrets=True.",
        variable=name,
        kind=kind,
    )


def _project(found: _Found) -> Path | None:
    """The directory that is the code root here: the script's, or the one of its package."""
    if found.script is not None:
        return found.script.parent
    target = found.target.func if isinstance(found.target, functools.partial) else found.target
    name = getattr(target, "__module__", None)
    script = scripts.script_of(name) if isinstance(name, str) else None
    if script is not None:
        return script.parent
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    if not isinstance(file, str) or not name:
        return None
    path = absolute(file)
    depth = name.count(".") + (path.name == "__init__.py")
    return path.parents[depth] if depth < len(path.parents) else None
