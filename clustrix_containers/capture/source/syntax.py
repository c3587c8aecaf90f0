"""What one Python source file imports and binds, read from its syntax tree and never executed.

Branches that can be decided are decided as they will be in the container:
``TYPE_CHECKING`` is false, ``__name__`` is not ``"__main__"``, ``sys.version_info``
is this interpreter's, ``sys.platform`` is ``"linux"``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from clustrix_containers.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Statement:
    """One import. ``import a.b`` has no ``names``; ``from ..a import b`` has ``level`` 2.

    ``optional``: its ImportError is caught. ``conditional``: it is in a branch whose condition
    is unknown here. ``deferred``: it is in a function. ``guarded``: it is under the main guard,
    so it does not run in the container. ``resource``: a package that is passed to
    ``importlib.resources``, not an import. ``toplevel``: it is not in a function or class.
    ``unit``: the function that it is in, if only the use of that function's name reaches it (see
    :class:`Source`).
    """

    module: str
    names: tuple[str, ...]
    level: int
    line: int
    optional: bool = False
    conditional: bool = False
    deferred: bool = False
    guarded: bool = False
    resource: bool = False
    toplevel: bool = True
    unit: str = ""


@dataclass(slots=True)
class Source:
    """What a file imports, and the names it binds at module level.

    ``guarded`` are the names bound under the main guard. ``dynamic`` are ``(line, call, unit)``
    of imports whose name is known only at run time. ``exports`` is a literal ``__all__``.

    ``units`` are module-level functions that can be reached only by their name (no decorator
    registers them), with the names that each uses; ``uses`` are the names used everywhere else:
    variables, attributes, and strings that could be names.
    """

    imports: list[Statement] = field(default_factory=list)
    dynamic: list[tuple[int, str, str]] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    exports: list[str] = field(default_factory=list)
    extends_path: bool = False
    uses: set[str] = field(default_factory=set)
    units: dict[str, set[str]] = field(default_factory=dict)


_Block = tuple[list[ast.stmt], Statement]
# What surrounds a statement is itself one: those inside inherit its flags.
_MODULE_LEVEL = Statement("", (), 0, 0)
_CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_RESOURCE_CALLS = {
    "files", "open_text", "open_binary", "read_text", "read_binary", "path", "contents",
    "is_resource", "get_data", "resource_filename", "resource_string", "resource_stream",
}  # fmt: skip
_ALIASED_MODULES = {"typing", "typing_extensions", "importlib"}
_DISCOVERIES = {"iter_modules", "walk_packages"}


def parse(content: bytes, filename: str) -> Source:
    """Read one file; cached by content. A syntax error is a CaptureError."""
    try:
        return _parse(content)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise CaptureError(
            f"{filename}:{line} is not valid Python {version}: {getattr(error, 'msg', error)}",
            hint="Correct the file; it would fail in the container too.",
            path=filename,
            line=line,
        ) from error


@lru_cache(maxsize=1024)
def _parse(content: bytes) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Visitor(ast.parse(content)).source


class _Visitor:
    """Fills a :class:`Source`."""

    def __init__(self, tree: ast.Module) -> None:
        self.source = Source()
        # The names under which TYPE_CHECKING and import_module were imported.
        self.checking = {"TYPE_CHECKING"}
        self.importers = {"__import__", "import_module"}
        aliases = {"TYPE_CHECKING": self.checking, "import_module": self.importers}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in _ALIASED_MODULES:
                for alias in node.names:
                    aliases.get(alias.name, set()).add(alias.asname or alias.name)
        self._visit(tree.body, _MODULE_LEVEL)

    def _visit(self, body: Iterable[ast.stmt], context: Statement) -> None:
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node, context)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._bind(context, node.name)
            elif isinstance(node, ast.Global):
                self.source.bound.update(node.names)
            self._expressions(node, context)
            for block, inner in self._blocks(node, context):
                self._visit(block, inner)

    def _blocks(self, node: Any, context: Statement) -> Iterator[_Block]:
        """The blocks of a compound statement, each with its context."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            unit = context.unit or self._unit(node, context)
            yield node.body, replace(context, deferred=True, toplevel=False, unit=unit)
        elif isinstance(node, ast.ClassDef):
            yield node.body, replace(context, toplevel=False)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            yield node.body, replace(context, optional=context.optional or _suppresses(node))
        elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            caught = any(_catches(handler) for handler in node.handlers)
            inner = replace(context, optional=context.optional or caught)
            yield node.body + node.orelse, inner
            for handler in node.handlers:
                yield handler.body, replace(inner, conditional=True)
            yield node.finalbody, context
        elif isinstance(node, ast.If) and (truth := _decide(node.test, self.checking)) is not None:
            run, skipped = (node.body, node.orelse) if truth else (node.orelse, node.body)
            yield run, context
            if _mentions_main(node.test):
                yield skipped, replace(context, guarded=True)
        else:
            for part in (node, *getattr(node, "cases", ())):
                block = getattr(part, "body", []) + getattr(part, "orelse", [])
                yield block, replace(context, conditional=True)

    def _unit(self, node: ast.FunctionDef | ast.AsyncFunctionDef, context: Statement) -> str:
        plain = all(_is_our_decorator(item) for item in node.decorator_list)
        if not context.toplevel or not plain or node.name.startswith("__"):
            return ""
        self.source.units.setdefault(node.name, set())
        return node.name

    def _use(self, context: Statement, *names: str) -> None:
        if not context.guarded:
            source = self.source
            (source.units[context.unit] if context.unit else source.uses).update(names)

    def _bind(self, context: Statement, *names: str) -> None:
        if context.toplevel:
            source = self.source
            (source.guarded if context.guarded else source.bound).update(names)

    def _add(self, context: Statement, line: int, module: str, level: int = 0) -> None:
        self.source.imports.append(replace(context, module=module, level=level, line=line))

    def _import(self, node: ast.Import | ast.ImportFrom, context: Statement) -> None:
        if isinstance(node, ast.ImportFrom):
            self._use(context, *(alias.name for alias in node.names if alias.asname))
            names = tuple(alias.name for alias in node.names)
            self._add(replace(context, names=names), node.lineno, node.module or "", node.level)
        else:
            for alias in node.names:
                self._add(context, node.lineno, alias.name)
        bound = (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        self._bind(context, *bound)

    def _expressions(self, node: ast.stmt, context: Statement) -> None:
        """Calls that import, and names that are bound, in a statement's own expressions."""
        is_export = _is_export(node)
        if is_export:
            elements = getattr(getattr(node, "value", None), "elts", ())
            literals = [getattr(element, "value", None) for element in elements]
            self.source.exports += [name for name in literals if isinstance(name, str)]
        for expression in _own_expressions(node):
            for inner in ast.walk(expression):
                if isinstance(inner, ast.Call):
                    self._call(inner, context)
                elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    self._bind(context, inner.id)
                elif isinstance(inner, (ast.MatchAs, ast.MatchStar)) and inner.name:
                    self._bind(context, inner.name)
                # A name in __all__ is not a use.
                if not is_export and (name := _name(inner)):
                    self._use(context, name)

    def _call(self, node: ast.Call, context: Statement) -> None:
        function = node.func
        name = _last_name(function)
        first = node.args[0] if node.args else None
        literal = first.value if isinstance(first, ast.Constant) else None
        imports = isinstance(function, ast.Name) and name in self.importers
        imports = imports or name == "import_module"
        if imports and isinstance(literal, str):
            self._add(context, node.lineno, *_named_module(node, literal))
        elif imports or name in _DISCOVERIES:
            self.source.dynamic.append((node.lineno, ast.unparse(node), context.unit))
        elif name in _RESOURCE_CALLS and isinstance(literal, str):
            if all(part.isidentifier() for part in literal.split(".")):
                self._add(replace(context, optional=True, resource=True), node.lineno, literal)
        elif name in ("extend_path", "declare_namespace"):
            self.source.extends_path = True


def _named_module(node: ast.Call, name: str) -> tuple[str, int]:
    """Module and level of ``import_module(name, package)``: absolute if the package is literal."""
    module = name.lstrip(".")
    level = len(name) - len(module)
    named = [keyword.value for keyword in node.keywords if keyword.arg == "package"]
    package = next(iter([*named, *node.args[1:2]]), None)
    if level and isinstance(package, ast.Constant) and isinstance(package.value, str):
        with contextlib.suppress(ImportError):
            return importlib.util.resolve_name(name, package.value), 0
    return module, level


def _name(node: ast.AST) -> str:
    """The name in a node: a variable, an attribute, or a string that ``getattr`` could take."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and node.value.isidentifier() else ""
    return _last_name(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _last_name(node: ast.AST) -> str:
    """``c`` of ``a.b.c`` and of ``c``; empty for other expressions."""
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _is_our_decorator(node: ast.expr) -> bool:
    """``@function`` and ``@cx.function(…)`` register nothing; other decorators may."""
    return _last_name(node.func if isinstance(node, ast.Call) else node) == "function"


def _is_export(node: ast.stmt) -> bool:
    """Whether a statement assigns ``__all__``."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def _catches(handler: ast.ExceptHandler) -> bool:
    # A bare ``except:`` has no type.
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(item is None or _last_name(item) in _CATCHES for item in types)


def _suppresses(node: ast.With | ast.AsyncWith) -> bool:
    """``with contextlib.suppress(ImportError):``"""
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(
        _last_name(call.func) == "suppress" and any(_last_name(it) in _CATCHES for it in call.args)
        for call in calls
    )


def _own_expressions(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a statement that are not inside its blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.match_case):
            yield from _own_expressions(child)
        elif not isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield child


_DECIDABLE = (
    ast.Attribute, ast.Call, ast.Compare, ast.Constant, ast.List, ast.Name, ast.Slice,
    ast.Subscript, ast.Tuple, ast.UnaryOp, ast.USub, ast.Not, ast.cmpop, ast.expr_context,
)  # fmt: skip
_CONTAINER = {
    "__builtins__": {},
    "sys": types.SimpleNamespace(version_info=sys.version_info, platform="linux"),
    "os": types.SimpleNamespace(name="posix"),
}


def _decide(node: ast.expr, checking: Iterable[str]) -> bool | None:
    """Whether a condition holds in the container; ``None`` if that cannot be known.

    ``checking`` are the names under which ``TYPE_CHECKING`` was imported.
    """
    if isinstance(node, ast.BoolOp):
        values = [_decide(value, checking) for value in node.values]
        decisive = isinstance(node.op, ast.Or)
        if decisive in values:
            return decisive
        return None if None in values else not decisive
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _decide(node.operand, checking)
        return None if value is None else not value
    if isinstance(node, ast.Compare) and _mentions_main(node):
        return isinstance(node.ops[0], ast.NotEq)
    if isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING":
        return False
    for inner in ast.walk(node):
        called = _last_name(inner.func) if isinstance(inner, ast.Call) else "startswith"
        if not isinstance(inner, _DECIDABLE) or called != "startswith":
            return None
    # Only constants, the names of _CONTAINER and str.startswith: nothing of the file is run.
    try:
        code = compile(ast.Expression(node), "<condition>", "eval")
        return bool(eval(code, {**_CONTAINER, **dict.fromkeys(checking, False)}))  # noqa: S307
    except Exception:
        return None


def _mentions_main(node: ast.expr) -> bool:
    """Whether an expression compares ``__name__`` with ``"__main__"``."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Compare) and isinstance(inner.ops[0], (ast.Eq, ast.NotEq)):
            sides = {ast.unparse(side) for side in (inner.left, inner.comparators[0])}
            if sides == {"__name__", repr("__main__")}:
                return True
    return False
