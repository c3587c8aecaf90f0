"""Picklers whose bytes do not depend on the process: cloudpickle's reductions, normalised.

Two differences in meaning. What a script defines is referred to by :data:`contract.MAIN`, and
what ``-m`` started by its real name. And a function that travels by value keeps its module's
own globals where that module travels too, instead of a copy of the few it uses.

This module imports cloudpickle: import it inside functions.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import sys
import threading
import types
import typing
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as cp

from . import scripts
from .identity import track
from .modules import OURS

_MODULE_ATTRIBUTES = frozenset(
    {"__file__", "__name__", "__package__", "__spec__", "__path__", "__loader__", "__doc__"}
)
_SENTINELS = {
    type(dataclasses.MISSING): "MISSING",
    type(dataclasses._HAS_DEFAULT_FACTORY): "_HAS_DEFAULT_FACTORY",  # type: ignore[attr-defined]
    type(dataclasses.KW_ONLY): "KW_ONLY",
}


class Unpicklable(TypeError):
    """An object that must not be pickled although it could be; the message says what it is."""


class _ModuleDict:
    """Stands for the namespace of a module that the container imports."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module


class Reducer:
    """The reductions; a mixin for picklers. ``place`` maps file names of code to the container's."""

    globals_ref: dict[int, dict[str, Any]]
    place: Callable[[str], str]

    def prepare(self, place: Callable[[str], str]) -> None:
        self.globals_ref = {}
        self.place = place
        self.references: set[str] = set()
        self.codes: list[types.CodeType] = []
        self.by_value = False
        self._homes: dict[str, _ModuleDict] = {}
        self._types: dict[type, Callable[[Reducer, Any], Any] | None] = dict(_HANDLERS)

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        try:
            handler = self._types[kind]
        except KeyError:
            handler = self._types[kind] = self._handler(kind)
        return NotImplemented if handler is None else handler(self, obj)

    def _handler(self, kind: type) -> Callable[[Reducer, Any], Any] | None:
        try:
            if issubclass(kind, type):
                return Reducer._class
        except TypeError:
            return None
        if hasattr(kind, "__clustrix_function__"):
            return Reducer._decorated
        if issubclass(kind, types.ModuleType):
            return Reducer._module
        if issubclass(kind, io.IOBase) and not issubclass(kind, (io.StringIO, io.BytesIO)):
            return Reducer._file
        # Objects that reduce to a bare name (numpy's ufuncs) say no more than their type.
        name = getattr(kind, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name in scripts.MAIN_NAMES:
            return None
        if not importable(module):
            # Cython's functions: their type's module is made up, their own is not.
            return Reducer._builtin
        if find_name(module, kind.__qualname__) is kind:
            self.references.add(scripts.travel_name(module.__name__) or module.__name__)
        return None

    def _by_name(self, obj: Any, *, plain: bool) -> Any:
        """A reduction by reference, or ``None`` if no name leads to ``obj`` in the container.

        ``plain`` says that the pickler's own way of writing a global does for this object.
        """
        name = getattr(obj, "__module__", None)
        qualname = getattr(obj, "__qualname__", None)
        if not isinstance(qualname, str) or "<" in qualname:
            return None
        if not isinstance(name, str):
            name = cp._whichmodule(obj, qualname)
        module = sys.modules.get(name) if name else None
        if module is None or find_name(module, qualname) is not obj:
            return None
        travel = self._travel(module, qualname.partition(".")[0])
        if travel is None:
            return None
        self.references.add(travel)
        if plain and travel == name:
            return NotImplemented
        parent, _, leaf = qualname.rpartition(".")
        return getattr, (find_name(module, parent) if parent else module, leaf)

    def _travel(self, module: types.ModuleType, first: str) -> str | None:
        """The module's name in the container, or ``None`` if ``first`` is not in it there."""
        name = module.__name__
        travel = scripts.travel_name(name)
        if travel is None or not importable(module) or cp._is_registered_pickle_by_value(module):
            return None
        if name in scripts.MAIN_NAMES:
            names = scripts.bound_names(name)
            if names is not None and first not in names[0]:
                return None
        return travel

    def _class(self, obj: type) -> Any:
        if obj in cp._BUILTIN_TYPE_NAMES or obj in (
            type(None),
            type(Ellipsis),
            type(NotImplemented),
        ):
            return cp._class_reduce(obj)
        reference = self._by_name(obj, plain=True)
        if reference is not None:
            return reference
        self.by_value = True
        track(obj)
        reduction = cp._dynamic_class_reduce(obj)
        state = reduction[2][0]
        if isinstance(state.get("__static_attributes__"), tuple):
            state["__static_attributes__"] = tuple(sorted(state["__static_attributes__"]))
        return reduction

    def _function(self, obj: types.FunctionType) -> Any:
        reference = self._by_name(obj, plain=True)
        if reference is not None:
            return reference
        self.by_value = True
        make, arguments, state, _, _, setter = cp.Pickler._dynamic_function_reduce(self, obj)
        code, namespace, *rest = arguments
        slots = state[1]
        home, captured = self._globals(obj, slots["__globals__"])
        slots["__globals__"] = captured
        slots["_cloudpickle_submodules"].sort(key=lambda module: module.__name__)
        for name in ("__file__", "__path__"):
            namespace.pop(name, None)
        return make, (code, home or namespace, *rest), state, None, None, setter

    # cloudpickle's own method, which _dynamic_function_reduce calls on its pickler.
    _function_getnewargs = cp.Pickler._function_getnewargs

    def _globals(
        self, function: types.FunctionType, used: dict[str, Any]
    ) -> tuple[_ModuleDict | None, dict[str, Any]]:
        """The module namespace to run in, if one is needed, and the globals that travel by value.

        A module's own globals are there when it has been imported. By value goes what an
        import does not bind: above all what a script binds under its main guard.
        """
        name = function.__globals__.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or vars(module) is not function.__globals__:
            return None, used
        travel = scripts.travel_name(module.__name__)
        if travel is None or not importable(module):
            return None, used
        names = scripts.bound_names(module.__name__)
        own, loose = [], {}
        for key, value in used.items():
            if key in _MODULE_ATTRIBUTES:
                own.append(key)
            elif names is not None and (key not in names[0] or key in names[1]):
                loose[key] = value
            elif not isinstance(value, types.ModuleType) and not self._foreign(value, module):
                own.append(key)
        if not own:
            return None, used
        self.references.add(travel)
        home = self._homes.setdefault(travel, _ModuleDict(module))
        return home, loose

    def _foreign(self, value: Any, home: types.ModuleType) -> bool:
        """Whether a global is a function or class that another module's name leads to."""
        if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return False
        name = getattr(value, "__module__", None)
        if not isinstance(name, str) or name == home.__name__:
            return False
        module = sys.modules.get(name)
        found = find_name(module, value.__qualname__) if module is not None else None
        return found is value and module is not None and importable(module)

    def _namespace(self, obj: _ModuleDict) -> Any:
        return vars, (obj.module,)

    def _module(self, obj: types.ModuleType) -> Any:
        travel = scripts.travel_name(obj.__name__)
        if travel is not None and importable(obj):
            self.references.add(travel)
            return importlib.import_module, (travel,)
        if obj.__name__ in scripts.MAIN_NAMES:
            return importlib.import_module, ("__main__",)
        state = {key: value for key, value in vars(obj).items() if key != "__builtins__"}
        return cp.dynamic_subimport, (obj.__name__, state)

    def _code(self, obj: types.CodeType) -> Any:
        self.codes.append(obj)
        consts = tuple(self.constant(value) for value in obj.co_consts)
        code = obj.replace(co_filename=self.place(obj.co_filename), co_consts=consts)
        make, arguments = cp._code_reduce(code)
        # From 3.1.3 on cloudpickle forgets where code came from, which tracebacks tell.
        kept = (code.co_filename if it == "<dynamic-code>" else it for it in arguments)
        return make, tuple(kept)

    def constant(self, value: Any) -> Any:
        return value

    def _builtin(self, obj: Any) -> Any:
        name = getattr(obj, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is not None and importable(module):
            self.references.add(module.__name__)
        return NotImplemented

    def _cached(self, obj: Any) -> Any:
        """An ``lru_cache`` that no name leads to: the function with an empty cache."""
        reference = self._by_name(obj, plain=False)
        if reference is not None:
            return reference
        options = obj.cache_parameters()
        maker = functools._lru_cache_wrapper
        info = functools._CacheInfo
        return maker, (obj.__wrapped__, options["maxsize"], options["typed"], info), vars(obj)

    def _decorated(self, obj: Any) -> Any:
        """Our own ``@function``: by name, else as the plain callable that it is in a container."""
        reference = self._by_name(obj, plain=False)
        return (functools.partial, (obj.__wrapped__,)) if reference is None else reference

    def _sentinel(self, obj: Any) -> Any:
        return _SENTINELS[type(obj)]

    def _typevar(self, obj: Any) -> Any:
        module = sys.modules.get(obj.__module__)
        if module is not None and find_name(module, obj.__name__) is obj:
            travel = self._travel(module, obj.__name__)
            if travel is not None:
                self.references.add(travel)
                return getattr, (module, obj.__name__)
        track(obj)
        return cp._make_typevar, cp._decompose_typevar(obj)

    def _file(self, obj: Any) -> Any:
        for name in ("stdin", "stdout", "stderr"):
            if obj is getattr(sys, name) or obj is getattr(sys, f"__{name}__"):
                return getattr, (sys, name)
        raise Unpicklable(describe(obj))


_HANDLERS: dict[type, Callable[[Reducer, Any], Any] | None] = {
    types.FunctionType: Reducer._function,
    types.BuiltinFunctionType: Reducer._builtin,
    types.ModuleType: Reducer._module,
    types.CodeType: Reducer._code,
    type: Reducer._class,
    typing.TypeVar: Reducer._typevar,
    functools._lru_cache_wrapper: Reducer._cached,
    _ModuleDict: Reducer._namespace,
    **dict.fromkeys(_SENTINELS, Reducer._sentinel),
}


class FastPickler(Reducer, cloudpickle.Pickler):  # type: ignore[misc]
    """On the C pickler, for arguments. Sets keep this process's order."""

    def __init__(self, file: io.BytesIO, place: Callable[[str], str]) -> None:
        super().__init__(file, protocol=5)
        self.prepare(place)


def find_name(module: Any, qualname: str) -> Any:
    """What a dotted name leads to in a module, or ``None``."""
    try:
        return functools.reduce(getattr, qualname.split("."), module)
    except Exception:
        return None


def importable(module: types.ModuleType) -> bool:
    """Whether another process can import a module (one that was made up here cannot be)."""
    if module.__name__ in scripts.MAIN_NAMES or scripts.loaded_script(module.__name__):
        return True
    for candidate in (module, sys.modules.get(module.__name__.partition(".")[0])):
        spec = getattr(candidate, "__spec__", None)
        if spec is not None and (spec.origin or spec.submodule_search_locations):
            return True
        if isinstance(getattr(candidate, "__file__", None), str):
            return True
    return module.__name__ in sys.builtin_module_names


def third_party_or_local(names: set[str]) -> frozenset[str]:
    """Module names without those that every image has."""
    return frozenset(
        name
        for name in names
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in OURS
        and name not in scripts.MAIN_NAMES
    )


def describe(obj: Any) -> str:
    """What an object is, in words a person would use."""
    kind = type(obj)
    if issubclass(kind, io.IOBase):
        name = getattr(obj, "name", None)
        return f"an open file ({name!r})" if name is not None else "an open file"
    words = {
        "_thread.lock": "a lock",
        "_thread.RLock": "a lock",
        "builtins.generator": "a running generator",
        "builtins.coroutine": "a running coroutine",
        "builtins.async_generator": "a running async generator",
        "builtins.frame": "a stack frame",
        "builtins.traceback": "a traceback",
    }
    full = f"{kind.__module__}.{kind.__qualname__}"
    if full in words:
        return words[full]
    if isinstance(obj, threading.Thread):
        return f"a thread ({obj.name!r})"
    if full.startswith("socket."):
        return "a socket"
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {full}"
