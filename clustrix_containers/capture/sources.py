"""The source of functions that travel by value: where it goes, and what it imports.

A traceback in the container shows the user's lines because the source lies where the code
object says. Source is never cut out and executed; the code object is what travels.
"""

from __future__ import annotations

import dis
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType

from clustrix_containers.errors import CaptureError
from clustrix_containers.worker import contract

from . import modules, scripts, syntax
from .modules import Module, absolute
from .syntax import Statement

_CELLS = ".clustrix/cells"


@dataclass
class Sources:
    """Gives each source file its place in the container, in order of appearance."""

    _places: dict[str, str] = field(default_factory=dict)
    _cells: list[str] = field(default_factory=list)

    def place(self, filename: str) -> str:
        """The file name that code from ``filename`` has in the container."""
        place = self._places.get(filename)
        if place is None:
            place = self._places[filename] = self._decide(filename)
        return place

    def _decide(self, filename: str) -> str:
        known = known_place(filename)
        if known is not None:
            return known
        if not linecache.getlines(filename):
            return filename if filename in ("<stdin>", "<string>") else "<source>"
        self._cells.append(filename)
        return f"{contract.CODE}/{_CELLS}/{len(self._cells)}.py"

    def cells(self, codes: list[CodeType]) -> Iterator[tuple[str, bytes, str]]:
        """``(path, content, name)`` of the sources that are no module's: of each the functions' lines.

        The other lines are blank: what else stands in a notebook's cell stays here.
        """
        for number, filename in enumerate(self._cells, 1):
            wanted = {
                line for code in codes if code.co_filename == filename for line in lines_of(code)
            }
            lines = linecache.getlines(filename)
            kept = [text if at in wanted else "\n" for at, text in enumerate(lines, 1)]
            content = "".join(kept[: max(wanted, default=0)])
            yield f"{_CELLS}/{number}.py", content.encode("utf-8", "surrogateescape"), filename


def known_place(filename: str) -> str | None:
    """Where a file of a script or of an importable module is in the container, else ``None``."""
    path = absolute(filename)
    script = scripts.current().path
    if path == script:
        return f"{contract.CODE}/{path.name}"
    name = module_of(filename)
    if name is not None:
        if scripts.loaded_script(name) is not None:
            return f"{contract.CODE}/{path.name}"
        travel = scripts.travel_name(name)
        if travel is not None:
            base = travel.replace(".", "/")
            tail = "/__init__.py" if path.name == "__init__.py" else path.suffix
            local = modules.installed_path(path) is None and modules.stdlib_path(path) is None
            if local:
                return f"{contract.CODE}/{base}{tail}"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = modules.installed_path(path)
    if installed is not None:
        return f"{contract.VENV}/lib/{version}/site-packages/{installed}"
    stdlib = modules.stdlib_path(path)
    return None if stdlib is None else f"{contract.PYTHON_ROOT}/lib/{version}/{stdlib}"


def module_of(filename: str) -> str | None:
    """The loaded module whose file this is."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == filename and name not in scripts.MAIN_NAMES:
            return name
    main = scripts.current()
    if main.kind == "module" and getattr(sys.modules["__main__"], "__file__", None) == filename:
        return "__main__"
    return None


def lines_of(code: CodeType) -> range:
    """The lines of a code object with all that is nested in it, decorators included."""
    last = code.co_firstlineno
    for inner in nested(code):
        positions = getattr(inner, "co_positions", None)
        if positions is not None:
            last = max([last, *(end for _, end, _, _ in positions() if end is not None)])
        else:
            last = max([last, *(line for _, _, line in inner.co_lines() if line is not None)])
    return range(code.co_firstlineno, last + 1)


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and all code objects among its constants."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested(value)


def imports_of(code: CodeType) -> tuple[Statement, ...]:
    """What a function's own body imports: from its source, else from its bytecode."""
    source = _source(code.co_filename)
    if source is None:
        return tuple(_bytecode_imports(code))
    lines = lines_of(code)
    return tuple(s for s in source.imports if s.line in lines and s.deferred)


def _source(filename: str) -> syntax.Source | None:
    lines = linecache.getlines(filename)
    if not lines:
        return None
    try:
        return syntax.parse("".join(lines).encode("utf-8", "surrogateescape"), filename)
    except CaptureError:
        # A cell with IPython's own syntax, or a file that changed since it was loaded.
        return None


def _bytecode_imports(code: CodeType) -> Iterator[Statement]:
    for inner in nested(code):
        line = inner.co_firstlineno
        loads: list[object] = []
        for instruction in dis.get_instructions(inner):
            line = instruction.starts_line or line if instruction.starts_line is not True else line
            if instruction.opname == "IMPORT_NAME":
                level = next((v for v in loads[-2:] if isinstance(v, int)), 0)
                names = next((v for v in loads[-2:] if isinstance(v, tuple)), ())
                yield Statement(instruction.argval or "", tuple(names), level, line, deferred=True)
            elif instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                loads.append(instruction.argval)


def package_of(function: FunctionType | None) -> Module:
    """The module that a function's relative imports start from."""
    namespace = function.__globals__ if function is not None else {}
    package = namespace.get("__package__")
    # Relative to a member of the package: any name below it does.
    return Module(f"{package}.function" if isinstance(package, str) and package else "", "local")
