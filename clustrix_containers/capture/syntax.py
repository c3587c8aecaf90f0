"""What one Python source file imports and binds, read from its syntax tree and never executed.

Branches that can be decided are decided as they will be in the container:
``TYPE_CHECKING`` is false, ``__name__`` is not ``"__main__"``, ``sys.version_info``
is this interpreter's, ``sys.platform`` is ``"linux"``.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clustrix_containers.errors import CaptureError

from .branches import UNKNOWN, decide, mentions_main


@dataclass(frozen=True, slots=True)
class Statement:
    """One import. ``import a.b`` has no ``names``; ``from ..a import b`` has ``level`` 2.

    ``optional``: its ImportError is caught. ``conditional``: a branch that cannot be decided
    here leads to it. ``deferred``: it stands in a function. ``guarded``: it stands under the
    main guard, so it does not run there.
    ``resource``: a package named to ``importlib.resources``, not an import. ``unit``: the
    function in which it stands, if that matters only to who uses its name (see :class:`Source`).
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
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What a file imports, and the names it binds at module level.

    ``guarded`` are the names bound under the main guard. ``dynamic`` are ``(line, call, unit)``
    of imports whose name only a run knows. ``exports`` is a literal ``__all__``.

    ``units`` are module-level functions that nothing but the use of their name can reach (no
    decorator registers them), with the names that each uses; ``uses`` are the names that all the
    rest uses: variables, attributes, and strings that could name something.
    """

    imports: tuple[Statement, ...]
    dynamic: tuple[tuple[int, str, str], ...]
    bound: frozenset[str]
    guarded: frozenset[str]
    star: bool
    exports: tuple[str, ...]
    extends_path: bool
    uses: frozenset[str]
    units: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a statement stands."""

    optional: bool = False
    conditional: bool = False
    deferred: bool = False
    guarded: bool = False
    toplevel: bool = True
    unit: str = ""


_CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_RESOURCE_CALLS = {
    "files", "open_text", "open_binary", "read_text", "read_binary", "path", "contents",
    "is_resource", "get_data", "resource_filename", "resource_string", "resource_stream",
}  # fmt: skip
_DISCOVERIES = {"iter_modules", "walk_packages"}
_parsed: dict[bytes, Source] = {}
_PARSED_LIMIT = 4096


def parse(content: bytes, filename: str) -> Source:
    """Read one file's content; remembered by content. A syntax error is a CaptureError."""
    key = hashlib.blake2b(content, digest_size=16).digest()
    source = _parsed.get(key)
    if source is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(content, filename)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            raise CaptureError(
                f"{filename}:{line} is not valid Python "
                f"{sys.version_info.major}.{sys.version_info.minor}: "
                f"{getattr(error, 'msg', error)}",
                hint="The container would fail on it too: correct the file.",
                path=filename,
                line=line,
            ) from error
        source = _Reader(tree).read()
        if len(_parsed) >= _PARSED_LIMIT:
            _parsed.clear()
        _parsed[key] = source
    return source


@dataclass
class _Reader:
    tree: ast.Module
    imports: list[Statement] = field(default_factory=list)
    dynamic: list[tuple[int, str, str]] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    exports: list[str] = field(default_factory=list)
    star: bool = False
    extends_path: bool = False
    uses: set[str] = field(default_factory=set)
    units: dict[str, set[str]] = field(default_factory=dict)
    checking: set[str] = field(default_factory=lambda: {"TYPE_CHECKING"})
    importers: set[str] = field(default_factory=lambda: {"__import__", "import_module"})

    def read(self) -> Source:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module in (
                "typing",
                "typing_extensions",
                "importlib",
            ):
                for alias in node.names:
                    names = {"TYPE_CHECKING": self.checking, "import_module": self.importers}
                    names.get(alias.name, set()).add(alias.asname or alias.name)
        self._body(self.tree.body, _Place())
        return Source(
            tuple(self.imports),
            tuple(self.dynamic),
            frozenset(self.bound),
            frozenset(self.guarded),
            self.star,
            tuple(self.exports),
            self.extends_path,
            frozenset(self.uses),
            {name: frozenset(used) for name, used in self.units.items()},
        )

    def _body(self, body: Iterable[ast.stmt], place: _Place) -> None:
        for statement in body:
            self._statement(statement, place)

    def _statement(self, node: ast.stmt, place: _Place) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, place)
        elif isinstance(node, ast.If):
            self._if(node, place)
        elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            self._try(node, place)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._bind(place, node.name)
            self._expressions(node, place)
            unit = place.unit or self._unit(node, place)
            self._body(node.body, replace(place, deferred=True, toplevel=False, unit=unit))
        elif isinstance(node, ast.ClassDef):
            self._bind(place, node.name)
            self._expressions(node, place)
            self._body(node.body, replace(place, toplevel=False))
        else:
            self._other(node, place)

    def _unit(self, node: ast.FunctionDef | ast.AsyncFunctionDef, place: _Place) -> str:
        plain = all(_is_our_decorator(item) for item in node.decorator_list)
        if not place.toplevel or not plain or node.name.startswith("__"):
            return ""
        self.units.setdefault(node.name, set())
        return node.name

    def _use(self, place: _Place, *names: str) -> None:
        if not place.guarded:
            (self.units[place.unit] if place.unit else self.uses).update(names)

    def _other(self, node: ast.stmt, place: _Place) -> None:
        """Loops, ``with``, ``match``, assignments, expressions."""
        if isinstance(node, ast.Global):
            self.bound.update(node.names)
        inner = place
        if isinstance(node, (ast.With, ast.AsyncWith)):
            inner = replace(place, optional=place.optional or _suppresses(node))
        elif not isinstance(node, (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign)):
            inner = replace(place, conditional=True)
        self._expressions(node, place)
        self._exports(node)
        for body in _bodies(node):
            self._body(body, inner)

    def _import(self, node: ast.Import | ast.ImportFrom, place: _Place) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._add(place, alias.name, (), 0, node.lineno)
                self._bind(place, alias.asname or alias.name.partition(".")[0])
            return
        names = tuple(alias.name for alias in node.names)
        self._use(place, *(alias.name for alias in node.names if alias.asname))
        self._add(place, node.module or "", names, node.level, node.lineno)
        if "*" in names:
            self.star = True
        self._bind(place, *(alias.asname or alias.name for alias in node.names))

    def _add(
        self,
        place: _Place,
        module: str,
        names: tuple[str, ...],
        level: int,
        line: int,
        *,
        resource: bool = False,
    ) -> None:
        self.imports.append(
            Statement(
                module,
                names,
                level,
                line,
                place.optional,
                place.conditional,
                place.deferred,
                place.guarded,
                resource,
                place.unit,
            )
        )

    def _if(self, node: ast.If, place: _Place) -> None:
        truth = decide(node.test, self.checking)
        self._expressions(node, place)
        if truth is UNKNOWN:
            self._body(node.body, replace(place, conditional=True))
            self._body(node.orelse, replace(place, conditional=True))
            return
        self._body(node.body if truth else node.orelse, place)
        if mentions_main(node.test):
            self._body(node.orelse if truth else node.body, replace(place, guarded=True))

    def _try(self, node: Any, place: _Place) -> None:
        caught = any(_catches(handler) for handler in node.handlers)
        inner = replace(place, optional=place.optional or caught)
        self._body(node.body, inner)
        for handler in node.handlers:
            self._body(handler.body, replace(inner, conditional=True))
        self._body(node.orelse, inner)
        self._body(node.finalbody, place)

    def _bind(self, place: _Place, *names: str) -> None:
        if place.toplevel:
            (self.guarded if place.guarded else self.bound).update(names)

    def _expressions(self, node: ast.stmt, place: _Place) -> None:
        """Calls that import, and names that are bound, in a statement's own expressions."""
        for expression in _own_expressions(node):
            for inner in ast.walk(expression):
                if isinstance(inner, ast.Call):
                    self._call(inner, place)
                elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    self._bind(place, inner.id)
                elif isinstance(inner, (ast.MatchAs, ast.MatchStar)) and inner.name:
                    self._bind(place, inner.name)
                if not _is_export(node):
                    self._use(place, *_names(inner))

    def _call(self, node: ast.Call, place: _Place) -> None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        first = node.args[0] if node.args else None
        literal = first.value if isinstance(first, ast.Constant) else None
        if name == "import_module" or (isinstance(function, ast.Name) and name in self.importers):
            if isinstance(literal, str):
                self._literal_import(node, literal, place)
            else:
                self.dynamic.append((node.lineno, ast.unparse(node), place.unit))
        elif name in _DISCOVERIES:
            self.dynamic.append((node.lineno, ast.unparse(node), place.unit))
        elif name in _RESOURCE_CALLS and isinstance(literal, str):
            if all(part.isidentifier() for part in literal.split(".")):
                self._add(replace(place, optional=True), literal, (), 0, node.lineno, resource=True)
        elif name == "extend_path" or name == "declare_namespace":
            self.extends_path = True

    def _literal_import(self, node: ast.Call, literal: str, place: _Place) -> None:
        name = literal.lstrip(".")
        level = len(literal) - len(name)
        package = node.args[1] if len(node.args) > 1 else None
        for keyword in node.keywords:
            if keyword.arg == "package":
                package = keyword.value
        if level and isinstance(package, ast.Constant) and isinstance(package.value, str):
            base = package.value.split(".")
            base = base[: len(base) - level + 1]
            name, level = ".".join([*base, name]), 0
        self._add(place, name, (), level, node.lineno)

    def _exports(self, node: ast.stmt) -> None:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets = [node.target]
        value = getattr(node, "value", None)
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            for element in getattr(value, "elts", ()):
                if isinstance(element, ast.Constant) and isinstance(element.value, str):
                    self.exports.append(element.value)


def _names(node: ast.AST) -> tuple[str, ...]:
    """What a node may name: a variable, an attribute, or a string that ``getattr`` could take."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (node.attr,)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,) if node.value.isidentifier() else ()
    return ()


def _is_our_decorator(node: ast.expr) -> bool:
    """``@function`` and ``@cx.function(…)`` register nothing; of others nobody knows."""
    called = node.func if isinstance(node, ast.Call) else node
    return getattr(called, "attr", getattr(called, "id", "")) == "function"


def _is_export(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def _catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(getattr(item, "attr", getattr(item, "id", "")) in _CATCHES for item in types)


def _suppresses(node: ast.With | ast.AsyncWith) -> bool:
    """``with contextlib.suppress(ImportError):``"""
    for item in node.items:
        call = item.context_expr
        if isinstance(call, ast.Call):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            caught = {getattr(arg, "attr", getattr(arg, "id", "")) for arg in call.args}
            if name == "suppress" and caught & _CATCHES:
                return True
    return False


def _bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(node, name, [])
    for case in getattr(node, "cases", []):
        yield case.body


def _own_expressions(node: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement that are not inside its blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.match_case):
            yield child.pattern
            if child.guard is not None:
                yield child.guard
        elif not isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield child
