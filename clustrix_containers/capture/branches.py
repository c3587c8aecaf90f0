"""What conditions come to in the container: version, platform, ``TYPE_CHECKING``, the main guard."""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Collection
from typing import Any

UNKNOWN: Any = object()
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def decide(node: ast.expr, checking: Collection[str]) -> Any:
    """The value of an expression that the container's circumstances decide, or :data:`UNKNOWN`.

    ``checking`` are the names of ``TYPE_CHECKING``.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return False if node.id in checking else UNKNOWN
    if isinstance(node, ast.Attribute):
        return _attribute(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = decide(node.operand, checking)
        return value if value is UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        return _boolean(node, checking)
    if isinstance(node, (ast.Tuple, ast.List)):
        values = tuple(decide(element, checking) for element in node.elts)
        return UNKNOWN if UNKNOWN in values else values
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _compare(node, checking)
    if isinstance(node, ast.Subscript):
        return _subscript(node, checking)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        subject = decide(node.func.value, checking)
        if node.func.attr == "startswith" and isinstance(subject, str) and len(node.args) == 1:
            prefix = decide(node.args[0], checking)
            return subject.startswith(prefix) if prefix is not UNKNOWN else UNKNOWN
    return UNKNOWN


def _boolean(node: ast.BoolOp, checking: Collection[str]) -> Any:
    values = [decide(value, checking) for value in node.values]
    decisive = isinstance(node.op, ast.Or)
    if any(value is not UNKNOWN and bool(value) is decisive for value in values):
        return decisive
    return UNKNOWN if any(value is UNKNOWN for value in values) else not decisive


def _compare(node: ast.Compare, checking: Collection[str]) -> Any:
    if mentions_main(node):
        return isinstance(node.ops[0], ast.NotEq)
    left, right = decide(node.left, checking), decide(node.comparators[0], checking)
    if left is UNKNOWN or right is UNKNOWN:
        return UNKNOWN
    if isinstance(node.ops[0], ast.In):
        return left in right if isinstance(right, (tuple, str)) else UNKNOWN
    compare = _COMPARE.get(type(node.ops[0]))
    try:
        return compare(left, right) if compare else UNKNOWN
    except TypeError:
        return UNKNOWN


def _subscript(node: ast.Subscript, checking: Collection[str]) -> Any:
    value = decide(node.value, checking)
    try:
        return value[ast.literal_eval(node.slice)] if value is not UNKNOWN else UNKNOWN
    except (ValueError, TypeError, IndexError, SyntaxError):
        pass
    if isinstance(node.slice, ast.Slice) and isinstance(value, tuple):
        upper = node.slice.upper
        bound = upper.value if isinstance(upper, ast.Constant) else None
        if node.slice.lower is None and isinstance(bound, int):
            return value[:bound]
    return UNKNOWN


def _attribute(node: ast.Attribute) -> Any:
    dotted = ast.unparse(node)
    if node.attr == "TYPE_CHECKING":
        return False
    return {
        "sys.version_info": tuple(sys.version_info),
        "sys.version_info.major": sys.version_info.major,
        "sys.version_info.minor": sys.version_info.minor,
        "sys.platform": "linux",
        "os.name": "posix",
    }.get(dotted, UNKNOWN)


def mentions_main(node: ast.expr) -> bool:
    """Whether an expression compares ``__name__`` with ``"__main__"``."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Compare) and isinstance(inner.ops[0], (ast.Eq, ast.NotEq)):
            sides = (inner.left, inner.comparators[0])
            if any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides) and any(
                isinstance(side, ast.Constant) and side.value == "__main__" for side in sides
            ):
                return True
    return False
