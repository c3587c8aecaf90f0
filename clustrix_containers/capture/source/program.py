"""The running program and its source files: which names they have here and in the container.

``__main__`` is a script, a module started with ``-m``, or an interactive session. A traceback in
the container shows the user's lines because the source is where the code object says. Source is
never cut out and executed; the code object is what travels.
"""

from __future__ import annotations

import dis
import itertools
import linecache
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal

from clustrix_containers.errors import CaptureError
from clustrix_containers.worker import contract

from . import modules, syntax
from .modules import absolute
from .syntax import Statement

MAIN_NAMES = frozenset({"__main__", "__mp_main__"})
"""The second is what multiprocessing calls the parent's script in a spawned child."""

_CELLS = ".clustrix/cells"


@dataclass(frozen=True, slots=True)
class Main:
    """How ``__main__`` travels.

    ``script``: its file travels and is loaded as :data:`contract.MAIN`. ``module``: it was
    started with ``-m`` and is imported by its real name. ``interactive``: a REPL, a notebook
    or standard input; what it defines travels by value.
    """

    kind: Literal["script", "module", "interactive"]
    module: str = contract.MAIN
    path: Path | None = None


def current_main() -> Main:
    """What the running process's ``__main__`` is."""
    module = sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None)
    name = str(spec.name) if spec is not None else ""
    if "get_ipython" in getattr(module, "__dict__", {}):
        # A kernel's launcher is not the user's program; %run sets the script's own file.
        name = ""
        if file is None or "ipykernel" in file:
            return Main("interactive")
    if name and name != "__main__":
        return Main("interactive") if name.startswith("ipykernel") else Main("module", name)
    if not isinstance(file, str) or not Path(file).is_file():
        return Main("interactive")
    return Main("script", contract.MAIN, absolute(file))


def loaded_script(name: str) -> Path | None:
    """The script that :func:`load_script` loaded under this module name, if any."""
    if name != contract.MAIN and not name.startswith(contract.MAIN + "."):
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    return absolute(file) if isinstance(file, str) else None


def script_of(name: str) -> Path | None:
    """The script behind a module name, ``__main__`` included; ``None`` if there is none."""
    return current_main().path if name in MAIN_NAMES else loaded_script(name)


def container_name(name: str) -> str | None:
    """The module name that a module has in the container; ``None`` if it does not exist there."""
    if name in MAIN_NAMES:
        main = current_main()
        return None if main.kind == "interactive" else main.module
    return contract.MAIN if loaded_script(name) is not None else name


def find_name(module: Any, qualname: str) -> Any:
    """The object of a dotted name in a module, or ``None``."""
    try:
        return operator.attrgetter(qualname)(module)
    except Exception:
        return None


def module_of(obj: Any) -> ModuleType | None:
    """The loaded module that an object says it is from."""
    name = getattr(obj, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def importable(module: ModuleType) -> bool:
    """Whether another process can import a module; it cannot if one was created in memory."""
    if module.__name__ in MAIN_NAMES or loaded_script(module.__name__):
        return True
    for candidate in (module, sys.modules.get(module.__name__.partition(".")[0])):
        spec = getattr(candidate, "__spec__", None)
        if spec is not None and (spec.origin or spec.submodule_search_locations):
            return True
        if isinstance(getattr(candidate, "__file__", None), str):
            return True
    return module.__name__ in sys.builtin_module_names


def importable_as(module: ModuleType, attribute: str) -> str | None:
    """The module's name in the container, or ``None`` if it has no ``attribute`` there."""
    remote = container_name(module.__name__)
    if remote is None or not importable(module):
        return None
    names = bound_names(module.__name__) if module.__name__ in MAIN_NAMES else None
    return None if names is not None and attribute not in names[0] else remote


def third_party_or_local(names: set[str]) -> frozenset[str]:
    """Module names without those that every image has."""
    return frozenset(
        name
        for name in names
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in modules.OURS
        and name not in MAIN_NAMES
    )


_Bound = tuple[AbstractSet[str], AbstractSet[str]]
_bound: dict[tuple[str, int, int], _Bound | None] = {}


def bound_names(name: str) -> _Bound | None:
    """The names that a module's file binds when imported, and those bound under its main guard.

    ``None`` when unknown (no file, or a star import).
    """
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or not (name in MAIN_NAMES or file.endswith((".py", ".pyw"))):
        return None
    try:
        status = os.stat(file)  # noqa: PTH116 - called for every argument of a map
        key = (file, status.st_mtime_ns, status.st_size)
        if key not in _bound:
            source = syntax.parse(Path(file).read_bytes(), file)
            star = any("*" in statement.names for statement in source.imports)
            _bound[key] = None if star else (source.bound, source.guarded)
    except OSError:
        return None
    return _bound[key]


_loading = threading.Lock()


def load_script(source: bytes, name: str, filename: str) -> ModuleType:
    """Load a script as module ``name``, registered in ``sys.modules``.

    Its main guard is false, since ``name`` is not ``__main__``; nor can a script without a
    guard submit itself, as :data:`contract.INSIDE` is set while it loads. Raises what the
    script raises, and then leaves no module behind.
    """
    module = ModuleType(name)
    module.__file__ = filename
    # The user's own file, or the code layer of an image whose digest is known.
    code = compile(source, filename, "exec", dont_inherit=True)
    with _loading:
        before = os.environ.get(contract.INSIDE)
        os.environ[contract.INSIDE] = "1"
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)  # noqa: S102
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            os.environ.pop(contract.INSIDE)
            if before is not None:
                os.environ[contract.INSIDE] = before
    return module


def script_module(path: Path | None, source: Callable[[], bytes]) -> ModuleType:
    """The module whose types a script's results are instances of.

    ``path`` is where the script was on the client. If this process runs that very file, it is
    ``__main__`` itself; if it has loaded it, that module; else ``source()`` (the script as it
    is in the code layer) is loaded under a free name below :data:`contract.MAIN`.
    """
    wanted = absolute(path) if path is not None else None
    loaded = [n for n in list(sys.modules) if n.startswith(contract.MAIN) and loaded_script(n)]
    for name in ("__mp_main__", "__main__", *loaded):
        module = sys.modules.get(name)
        if wanted is not None and module is not None and script_of(name) == wanted:
            return module
    names = (f"{contract.MAIN}.{number}" for number in itertools.count(1))
    name = next(name for name in names if name not in sys.modules)
    return load_script(source(), name, str(wanted or f"<{name}>"))


def container_path(filename: str) -> str | None:
    """Where a file of a script or of an importable module is in the container, else ``None``."""
    path = absolute(filename)
    name = _module_of(filename)
    if path == current_main().path or (name is not None and loaded_script(name) is not None):
        return f"{contract.CODE}/{path.name}"
    installed, stdlib = modules.installed_path(path), modules.stdlib_path(path)
    remote = container_name(name) if name is not None else None
    if remote is not None and installed is None and stdlib is None:
        tail = "/__init__.py" if path.name == "__init__.py" else path.suffix
        return f"{contract.CODE}/{remote.replace('.', '/')}{tail}"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if installed is not None:
        return f"{contract.VENV}/lib/{version}/site-packages/{installed}"
    return None if stdlib is None else f"{contract.PYTHON_ROOT}/lib/{version}/{stdlib}"


def _module_of(filename: str) -> str | None:
    """The loaded module whose file this is."""
    with_main = current_main().kind == "module"
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == filename and (with_main or name not in MAIN_NAMES):
            return name
    return None


@dataclass
class FilenameMap:
    """Gives each source file its name in the container; cells are numbered as they appear."""

    _names: dict[str, str] = field(default_factory=dict)
    _cells: list[str] = field(default_factory=list)

    def __call__(self, filename: str) -> str:
        """The file name that code from ``filename`` has in the container."""
        name = self._names.get(filename) or container_path(filename)
        if name is None and linecache.getlines(filename):
            self._cells.append(filename)
            name = f"{contract.CODE}/{_CELLS}/{len(self._cells)}.py"
        elif name is None:
            name = filename if filename in ("<stdin>", "<string>") else "<source>"
        self._names[filename] = name
        return name

    def cells(self, codes: list[CodeType]) -> Iterator[tuple[str, bytes, str]]:
        """``(path, content, filename)`` of the sources that are no module's.

        Only the lines of the functions in ``codes``; the others are blank, so that the rest of a
        notebook's cell does not travel.
        """
        for number, filename in enumerate(self._cells, 1):
            wanted = {
                line for code in codes if code.co_filename == filename for line in lines_of(code)
            }
            lines = linecache.getlines(filename)
            kept = [text if at in wanted else "\n" for at, text in enumerate(lines, 1)]
            content = "".join(kept[: max(wanted, default=0)])
            yield f"{_CELLS}/{number}.py", content.encode("utf-8", "surrogateescape"), filename


def lines_of(code: CodeType) -> range:
    """The lines of a code object with all that is nested in it, decorators included."""
    last = code.co_firstlineno
    for inner in nested(code):
        if sys.version_info >= (3, 11):
            ends = [end for _, end, _, _ in inner.co_positions()]
        else:
            ends = [line for _, _, line in inner.co_lines()]
        last = max([last, *(end for end in ends if end is not None)])
    return range(code.co_firstlineno, last + 1)


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and all code objects among its constants."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested(value)


def globals_used(code: CodeType) -> Iterator[str]:
    """The global names that a code object reads, those nested in it included."""
    for inner in nested(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield str(instruction.argval)


def imports_of(code: CodeType) -> tuple[Statement, ...]:
    """What a function's own body imports: from its source, else from its bytecode."""
    lines = linecache.getlines(code.co_filename)
    try:
        content = "".join(lines).encode("utf-8", "surrogateescape")
        source = syntax.parse(content, code.co_filename) if lines else None
    except CaptureError:
        # A cell with IPython's own syntax, or a file that changed since it was loaded.
        source = None
    if source is None:
        return tuple(_bytecode_imports(code))
    body = lines_of(code)
    return tuple(s for s in source.imports if s.line in body and s.deferred)


def _bytecode_imports(code: CodeType) -> Iterator[Statement]:
    for inner in nested(code):
        line = inner.co_firstlineno
        loads: list[object] = []
        for instruction in dis.get_instructions(inner):
            # From 3.13 on starts_line is a bool.
            line = getattr(instruction, "line_number", instruction.starts_line) or line
            if instruction.opname == "IMPORT_NAME":
                level = next((v for v in loads[-2:] if isinstance(v, int)), 0)
                names = next((v for v in loads[-2:] if isinstance(v, tuple)), ())
                yield Statement(instruction.argval or "", tuple(names), level, line, deferred=True)
            elif instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                loads.append(instruction.argval)
