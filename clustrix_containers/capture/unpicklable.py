"""Which variable it is that cannot travel."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .modules import installed_path

_DEPTH = 12
_Found = tuple[str, Any]


def find(root: Any, label: str, guilty: Callable[[Any], bool]) -> _Found:
    """The innermost guilty part of ``root``: how to name it, and the part itself.

    ``guilty`` says whether a value is at fault or holds something that is.
    """
    seen = {id(root)}
    name, found = label, root
    for _ in range(_DEPTH):
        for relation, part in _parts(found):
            if id(part) in seen or not guilty(part):
                continue
            seen.add(id(part))
            name, found = relation.format(name=name), part
            break
        else:
            break
    return name, found


def name_of(obj: Any) -> str:
    """What a person calls a callable: its qualified name without ``<locals>``."""
    if isinstance(obj, functools.partial):
        return f"partial of {name_of(obj.func)}"
    name = getattr(obj, "__qualname__", None)
    if not isinstance(name, str):
        name = type(obj).__qualname__
    return name.rpartition("<locals>.")[2]


def _parts(obj: Any) -> Iterator[_Found]:
    """``(relation, part)``; the relation names the part, with ``{name}`` for the whole."""
    if isinstance(obj, types.FunctionType):
        yield from _function(obj)
    elif isinstance(obj, types.MethodType):
        yield f"the instance that '{_safe(name_of(obj))}' is bound to", obj.__self__
        yield f"'{_safe(name_of(obj))}'", obj.__func__
    elif isinstance(obj, functools.partial):
        yield f"the function of a {_safe(name_of(obj))}", obj.func
        for index, value in enumerate(obj.args):
            yield f"argument {index} of a {_safe(name_of(obj))}", value
        for key, value in obj.keywords.items():
            yield f"argument '{key}' of a {_safe(name_of(obj))}", value
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield f"{{name}}, key {_safe(_short(key))}", value
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield f"{{name}}, item {index}", value
    elif isinstance(obj, type):
        for key, value in vars(obj).items():
            inner = getattr(value, "__func__", value)
            if key not in ("__dict__", "__weakref__"):
                yield f"attribute '{key}' of the class {_safe(name_of(obj))}", inner
    else:
        yield from _attributes(obj)


def _function(function: types.FunctionType) -> Iterator[_Found]:
    name = _safe(name_of(function))
    code = function.__code__
    for variable, value in inspect.getclosurevars(function).nonlocals.items():
        yield f"closure variable '{variable}' of '{name}'", value
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    for variable, value in zip(names[len(names) - len(defaults) :], defaults, strict=False):
        yield f"the default of parameter '{variable}' of '{name}'", value
    for variable, value in (function.__kwdefaults__ or {}).items():
        yield f"the default of parameter '{variable}' of '{name}'", value
    for variable in globals_used(code):
        if variable in function.__globals__:
            yield f"global variable '{variable}' of '{name}'", function.__globals__[variable]
    for key, value in vars(function).items():
        yield f"attribute '{key}' of '{name}'", value
    yield f"the code of '{name}'", code


def globals_used(code: types.CodeType) -> Iterator[str]:
    """The global names that a code object reads, those nested in it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from globals_used(value)


def _attributes(obj: Any) -> Iterator[_Found]:
    if not _of_the_user(type(obj)):
        return
    kind = _safe(type(obj).__qualname__.rpartition("<locals>.")[2])
    attributes = dict(getattr(obj, "__dict__", {}) or {})
    for base in type(obj).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, slot):
                attributes[slot] = getattr(obj, slot)
    for key, value in attributes.items():
        yield f"attribute '{key}' of {{name}} ({kind})", value


def _of_the_user(kind: type) -> bool:
    """Whether naming what is inside an object of this type would help: not so in a Thread."""
    if kind is types.SimpleNamespace:
        return True
    name = kind.__module__
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return not isinstance(file, str) or installed_path(Path(file)) is None


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 40 else text[:37] + "..."


def _safe(text: str) -> str:
    """For a relation, where braces mean the whole's name."""
    return text.replace("{", "{{").replace("}", "}}")
