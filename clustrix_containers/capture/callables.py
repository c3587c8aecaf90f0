"""A callable becomes a Bundle."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clustrix_containers.capture.pickling import unpicklable
from clustrix_containers.capture.source import datafiles, program
from clustrix_containers.capture.source.imports import ImportWalk
from clustrix_containers.capture.source.modules import Finder, Module, absolute
from clustrix_containers.errors import CaptureError
from clustrix_containers.oci.model import Platform
from clustrix_containers.worker import contract

from .bundle import Bundle, Entry
from .secrets import find_secret, secret_error

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

    ``modules``: more module names (a local package includes all modules below it). ``files``:
    data files and directories. ``references``: the modules that pickled arguments refer to.
    ``platform``: what compiled local modules must run on; Linux on this machine's processor
    by default. Raises CaptureError for what cannot travel (also a secret, unless
    ``allow_secrets``) and DependencyError for an import that cannot be resolved.
    """
    found = _locate(function)
    walk = ImportWalk(Finder(), platform or Platform.host(), allow_secrets)
    pickled: bytes | None = None
    wanted = set(references)
    if found.kind == "value":
        walk.reach_all()
        pickled, names = _by_value(found.target, walk, allow_secrets)
        for name in sorted(names - {contract.MAIN}):
            walk.add_module(name, _FUNCTION, ())
        wanted |= names & {contract.MAIN}
    else:
        # Functions of the arguments' modules can be called through the arguments.
        if wanted:
            walk.reach_all(*wanted)
        walk.use(found.qualname.split("."))
        _entry_lines(found, walk)
        if found.kind == "module":
            walk.add_module(found.module, _FUNCTION, ())
    main = _script(found, wanted)
    script = None if main is None else walk.add_script(main, "the script")
    for name in sorted(wanted - {contract.MAIN}):
        walk.add_module(name, "the arguments", ())
    for name in modules:
        walk.add_package(name, "the argument modules=")
    for file in datafiles.named_files(files, _project(found)):
        walk.add_file(file)
    walk.finish()
    return Bundle(
        Entry(found.kind, found.module, found.qualname, unpicklable.name_of(function), script),
        tuple(walk.files[path] for path in sorted(walk.files)),
        tuple(walk.imports[name] for name in sorted(walk.imports)),
        tuple(walk.notes[key] for key in sorted(walk.notes)),
        pickled,
        main,
    )


def _script(found: _Located, wanted: set[str]) -> Path | None:
    """The script that the image must carry: the function's own, or one that is referred to."""
    if found.kind != "script" and contract.MAIN not in wanted:
        return None
    main = found.script or program.current_main().path or program.loaded_script(contract.MAIN)
    if main is None:
        raise CaptureError(
            "the arguments refer to a script, and this session has no script",
            hint="Pass what the image's own script defines, or move it to a module.",
        )
    return main


@dataclass(frozen=True)
class _Located:
    kind: Literal["module", "script", "value"]
    module: str
    qualname: str
    target: Any
    script: Path | None = None


def _locate(function: Callable[..., Any]) -> _Located:
    """The name by which the container finds the callable; kind ``value`` if there is none."""
    if not callable(function):
        raise CaptureError(
            f"{unpicklable.name_of(function)!r} is not callable", hint="Pass a function."
        )
    target: Any = function
    while hasattr(type(target), "__clustrix_function__"):
        # Our own decorator.
        target = target.__wrapped__
    owner = getattr(target, "__self__", None)
    if isinstance(target, types.MethodType) and isinstance(owner, type):
        # A classmethod, possibly inherited: found through the class that it is bound to.
        name, qualname = owner.__module__, f"{owner.__qualname__}.{target.__name__}"
    else:
        name = getattr(target, "__module__", None) or ""
        qualname = getattr(target, "__qualname__", None) or ""
    value = _Located("value", program.container_name(name) or "", qualname, target)
    bound = isinstance(target, types.MethodType) and not isinstance(owner, type)
    if bound or not isinstance(name, str) or not qualname or "<" in qualname:
        return value
    module = sys.modules.get(name)
    if module is None or not _leads_to(program.find_name(module, qualname), target):
        return value
    remote = program.importable_as(module, qualname.partition(".")[0])
    if remote is None:
        return value
    script = program.script_of(name) if remote == contract.MAIN else None
    return _Located("script" if script else "module", remote, qualname, target, script)


def _leads_to(found: Any, target: Any) -> bool:
    """Whether the object of a name is the target, or wraps it."""

    def same(it: Any) -> bool:
        return it is target or (isinstance(target, types.MethodType) and bool(it == target))

    try:
        return same(inspect.unwrap(found, stop=same))
    except ValueError:
        return False  # It wraps itself.


def _entry_lines(found: _Located, walk: ImportWalk) -> None:
    """The function's own lines; a note on each global that is set only under the main guard."""
    function = inspect.unwrap(found.target)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return
    path = found.script.name if found.script else walk.finder.find(found.module).path
    walk.add_entry_lines(path, program.lines_of(code))
    names = program.bound_names(getattr(found.target, "__module__", None) or "")
    guarded = names[1] - names[0] if names else ()
    for variable in dict.fromkeys(program.globals_used(code)):
        if variable in guarded:
            walk.add_note(
                f"{path}:{code.co_firstlineno}",
                f"{unpicklable.name_of(found.target)} uses {variable}, which is set only under "
                'if __name__ == "__main__", which does not run in the container',
                "Set it outside, or pass it as an argument.",
            )


def _by_value(target: Any, walk: ImportWalk, allow_secrets: bool) -> tuple[bytes, set[str]]:
    """The normalised pickle, and the modules it refers to; its source goes into ``walk``."""
    from clustrix_containers.capture.pickling import reduction

    filenames = program.FilenameMap()
    try:
        try:
            data, pickler = reduction.dump(reduction.StablePickler, target, filenames)
        except RecursionError:
            data, pickler = reduction.dump(reduction.FastPickler, target, filenames)
    except Exception as error:
        raise _uncapturable(target, error) from error
    if not allow_secrets:
        _refuse_secret(target, data)
    for path, content, name in filenames.cells(pickler.codes):
        walk.add_source(
            path, content, name, f"source of {unpicklable.name_of(target)}, for tracebacks"
        )
    _follow_codes(pickler.codes, target, walk)
    return data, set(program.third_party_or_local(pickler.references))


def _follow_codes(codes: list[types.CodeType], target: Any, walk: ImportWalk) -> None:
    """The source of by-value code in local modules, and what its bodies import."""
    function = getattr(target, "__func__", target)
    package = getattr(function, "__globals__", {}).get("__package__")
    # Relative imports start from a member of the package: any name below it does.
    module = Module(f"{package}.function" if isinstance(package, str) and package else "", "local")
    for code in codes:
        name = code.co_filename
        path = program.container_path(name)
        if path is not None:
            if not path.startswith(contract.CODE + "/"):
                continue
            name = path.removeprefix(contract.CODE + "/")
            if (file := Path(code.co_filename)).is_file():
                walk.add_source(name, file.read_bytes(), str(file), "source, for tracebacks")
        walk.add_entry_lines(name, program.lines_of(code))
        for statement in program.imports_of(code):
            walk.add_statement(statement, module, name, (unpicklable.name_of(target),))


def _uncapturable(target: Any, error: Exception) -> CaptureError:
    label = f"'{unpicklable.name_of(target)}'"
    name, part = unpicklable.find_unpicklable(target, label)
    return CaptureError(
        f"{name} is {unpicklable.describe(part)}, which cannot travel to another machine",
        hint="Create it inside the function, or pass what it is made from (a path, an address) "
        f"as an argument. ({type(error).__name__}: {error})",
        variable=name,
    )


def _refuse_secret(target: Any, data: bytes) -> None:
    kind = find_secret(data)
    if kind is None:
        return

    def offending(value: Any) -> bool:
        return find_secret(unpicklable.pickled(value) or b"") is not None

    name, _ = unpicklable.find_part(target, f"'{unpicklable.name_of(target)}'", offending)
    raise secret_error(name, kind, variable=name)


def _project(found: _Located) -> Path | None:
    """The local directory that is the code root: the script's, or the top-level package's parent."""
    target = found.target.func if isinstance(found.target, functools.partial) else found.target
    module = program.module_of(target)
    script = found.script or (program.script_of(module.__name__) if module else None)
    if script is not None:
        return script.parent
    file = getattr(module, "__file__", None)
    if module is None or not isinstance(file, str):
        return None
    path = absolute(file)
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    return path.parents[depth] if depth < len(path.parents) else None
