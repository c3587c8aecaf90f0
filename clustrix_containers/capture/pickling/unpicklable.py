"""Which variable cannot be pickled, in the words of the user's code."""

from __future__ import annotations

import functools
import inspect
import io
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.capture.source.modules import installed_path
from clustrix_containers.capture.source.program import globals_used

_MAX_DEPTH = 12
_DESCRIPTIONS = {
    "_thread.lock": "a lock",
    "_thread.RLock": "a lock",
    "builtins.generator": "a running generator",
    "builtins.coroutine": "a running coroutine",
    "builtins.async_generator": "a running async generator",
    "builtins.frame": "a stack frame",
}
_Part = tuple[str, Any]


def find_unpicklable(root: Any, label: str) -> _Part:
    """The innermost part of ``root`` that cannot be pickled: how to name it, and the part."""
    return find_part(root, label, lambda value: pickled(value) is None)


def find_part(root: Any, label: str, offending: Callable[[Any], bool]) -> _Part:
    """The innermost offending part of ``root``: how to name it, and the part itself.

    ``offending`` is true of a value at fault and of everything that holds one.
    """
    seen = {id(root)}
    name, found = label, root
    for _ in range(_MAX_DEPTH):
        parts = (it for it in _parts(found, name) if id(it[1]) not in seen and offending(it[1]))
        innermost = next(parts, None)
        if innermost is None:
            break
        name, found = innermost
        seen.add(id(found))
    return name, found


def pickled(value: Any) -> bytes | None:
    """The pickle of one part, or ``None`` if it has none."""
    from . import reduction

    try:
        return reduction.dump(reduction.FastPickler, value, str)[0]
    except Exception:
        return None


def describe(obj: Any) -> str:
    """What an object is, in everyday words."""
    kind = type(obj)
    if issubclass(kind, io.IOBase):
        name = getattr(obj, "name", None)
        return f"an open file ({name!r})" if name is not None else "an open file"
    if isinstance(obj, threading.Thread):
        return f"a thread ({obj.name!r})"
    full = f"{kind.__module__}.{kind.__qualname__}"
    if full.startswith("socket."):
        return "a socket"
    return _DESCRIPTIONS.get(full, f"a {full.removeprefix('builtins.')}")


def name_of(obj: Any) -> str:
    """The name of a callable in messages: its qualified name without ``<locals>``."""
    if isinstance(obj, functools.partial):
        return f"partial of {name_of(obj.func)}"
    name = getattr(obj, "__qualname__", None)
    if not isinstance(name, str):
        name = type(obj).__qualname__
    return name.rpartition("<locals>.")[2]


def _parts(obj: Any, name: str) -> Iterator[_Part]:
    """The parts of an object, each with how to name it; ``name`` is how the whole is named."""
    if isinstance(obj, types.FunctionType):
        yield from _function(obj)
    elif isinstance(obj, types.MethodType):
        yield f"the instance that '{name_of(obj)}' is bound to", obj.__self__
        yield f"'{name_of(obj)}'", obj.__func__
    elif isinstance(obj, functools.partial):
        yield f"the function of a {name_of(obj)}", obj.func
        named = [(str(index), value) for index, value in enumerate(obj.args)]
        named += [(f"'{key}'", value) for key, value in obj.keywords.items()]
        for key, value in named:
            yield f"argument {key} of a {name_of(obj)}", value
    elif isinstance(obj, dict):
        for key, value in obj.items():
            text = repr(key)
            text = text if len(text) <= 40 else text[:37] + "..."
            yield f"{name}, key {text}", value
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield f"{name}, item {index}", value
    elif isinstance(obj, type):
        for key, value in vars(obj).items():
            inner = getattr(value, "__func__", value)
            if key not in ("__dict__", "__weakref__"):
                yield f"attribute '{key}' of the class {name_of(obj)}", inner
    else:
        yield from _attributes(obj, name)


def _function(function: types.FunctionType) -> Iterator[_Part]:
    name = name_of(function)
    code = function.__code__
    for variable, value in inspect.getclosurevars(function).nonlocals.items():
        yield f"closure variable '{variable}' of '{name}'", value
    names = code.co_varnames[: code.co_argcount]
    values = function.__defaults__ or ()
    defaults = dict(zip(names[len(names) - len(values) :], values, strict=False))
    for variable, value in {**defaults, **(function.__kwdefaults__ or {})}.items():
        yield f"the default of parameter '{variable}' of '{name}'", value
    for variable in globals_used(code):
        if variable in function.__globals__:
            yield f"global variable '{variable}' of '{name}'", function.__globals__[variable]
    for key, value in vars(function).items():
        yield f"attribute '{key}' of '{name}'", value
    yield f"the code of '{name}'", code


def _attributes(obj: Any, name: str) -> Iterator[_Part]:
    if not _is_users(type(obj)):
        return
    attributes = dict(getattr(obj, "__dict__", {}) or {})
    for base in type(obj).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, slot):
                attributes[slot] = getattr(obj, slot)
    for key, value in attributes.items():
        yield f"attribute '{key}' of {name} ({name_of(type(obj))})", value


def _is_users(kind: type) -> bool:
    """Whether a name inside an object of this type helps the user: not inside a Thread."""
    if kind is types.SimpleNamespace:
        return True
    name = kind.__module__
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return not isinstance(file, str) or installed_path(Path(file)) is None
