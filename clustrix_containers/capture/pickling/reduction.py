"""Picklers whose bytes do not depend on the process: cloudpickle's reductions, normalised.

Two differences in meaning. What a script defines is referred to by :data:`contract.MAIN`, and
what ``-m`` started by its real name. And a function that travels by value keeps its module's
own globals where that module travels too, instead of a copy of the few it uses.

This module imports cloudpickle: import it inside functions.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import marshal
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

# All names of cloudpickle that are not public, in one place: a release is supported when
# tests/unit/capture/test_cloudpickle.py has passed on it, and pyproject.toml admits no other.
from cloudpickle.cloudpickle import (
    _BUILTIN_TYPE_NAMES,
    _DYNAMIC_CLASS_TRACKER_BY_CLASS,
    _DYNAMIC_CLASS_TRACKER_BY_ID,
    _DYNAMIC_CLASS_TRACKER_LOCK,
    Pickler,  # with dispatch_table, _dynamic_function_reduce, _function_getnewargs
    _class_reduce,
    _class_setstate,
    _code_reduce,
    _decompose_typevar,
    _dynamic_class_reduce,
    _is_registered_pickle_by_value,
    _make_typevar,
    _whichmodule,
    dynamic_subimport,
)

from clustrix_containers.capture.source import program

from .unpicklable import describe

_MODULE_ATTRIBUTES = frozenset(
    {"__file__", "__name__", "__package__", "__spec__", "__path__", "__loader__", "__doc__"}
)
_SINGLETON_TYPES = (type(None), type(Ellipsis), type(NotImplemented))
_SENTINELS = {
    type(getattr(dataclasses, name)): name
    for name in ("MISSING", "_HAS_DEFAULT_FACTORY", "KW_ONLY")
}

# The Python pickler, which typeshed declares without its methods.
_PythonPickler: Any = pickle._Pickler


@dataclasses.dataclass(eq=False)
class _ModuleDict:
    """The namespace of a module that the container imports, in a pickle."""

    module: types.ModuleType


class Reducer:
    """The reductions; a mixin for picklers. ``rename`` maps file names of code to the container's."""

    def __init__(self, file: io.BytesIO, rename: Callable[[str], str]) -> None:
        super().__init__(file, protocol=5)  # type: ignore[call-arg]
        self.globals_ref: dict[int, dict[str, Any]] = {}
        self.rename = rename
        self.references: set[str] = set()
        self.codes: list[types.CodeType] = []
        self.by_value = False
        self._namespaces: dict[str, _ModuleDict] = {}
        self._types: dict[type, Callable[[Reducer, Any], Any] | None] = dict(_HANDLERS)

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind not in self._types:
            self._types[kind] = self._handler(kind)
        handler = self._types[kind]
        if handler is None:
            return NotImplemented
        reference = self._by_name(obj) if handler in _NAMED else None
        return handler(self, obj) if reference is None else reference

    def _handler(self, kind: type) -> Callable[[Reducer, Any], Any] | None:
        if issubclass(kind, type):
            return Reducer._class
        if hasattr(kind, "__clustrix_function__"):
            return Reducer._decorated
        if issubclass(kind, types.ModuleType):
            return Reducer._module
        if issubclass(kind, io.IOBase) and not issubclass(kind, (io.StringIO, io.BytesIO)):
            return Reducer._file
        # Objects that reduce to a bare name (numpy's ufuncs) are known only by their type.
        module = program.module_of(kind)
        if module is None or module.__name__ in program.MAIN_NAMES:
            return None
        if not program.importable(module):
            # Cython's functions: the module of their type does not exist, their own does.
            return Reducer._builtin
        if program.find_name(module, kind.__qualname__) is kind:
            self.references.add(program.container_name(module.__name__) or module.__name__)
        return None

    def _by_name(self, obj: Any) -> Any:
        """A reduction by reference, or ``None`` if no name leads to ``obj`` in the container."""
        name = getattr(obj, "__module__", None)
        # A TypeVar has no qualified name.
        qualname = getattr(obj, "__qualname__", getattr(obj, "__name__", None))
        if not isinstance(qualname, str) or "<" in qualname:
            return None
        if not isinstance(name, str):
            name = _whichmodule(obj, qualname)
        module = sys.modules.get(name) if name else None
        if module is None or program.find_name(module, qualname) is not obj:
            return None
        remote = program.importable_as(module, qualname.partition(".")[0])
        if remote is None or _is_registered_pickle_by_value(module):
            return None
        self.references.add(remote)
        if remote == name and isinstance(obj, (type, types.FunctionType)):
            # The pickler itself writes the reference.
            return NotImplemented
        parent, _, leaf = qualname.rpartition(".")
        return getattr, (program.find_name(module, parent) if parent else module, leaf)

    def _class(self, obj: type) -> Any:
        if obj in _BUILTIN_TYPE_NAMES or obj in _SINGLETON_TYPES:
            return _class_reduce(obj)
        reference = self._by_name(obj)
        if reference is not None:
            return reference
        self.by_value = True
        track(obj)
        reduction = _dynamic_class_reduce(obj)
        state = reduction[2][0]
        if isinstance(state.get("__static_attributes__"), tuple):
            state["__static_attributes__"] = tuple(sorted(state["__static_attributes__"]))
        return reduction

    def _function(self, obj: types.FunctionType) -> Any:
        self.by_value = True
        make, arguments, state, _, _, setter = Pickler._dynamic_function_reduce(self, obj)
        code, namespace, *rest = arguments
        slots = state[1]
        home, captured = self._globals(obj, slots["__globals__"])
        slots["__globals__"] = captured
        slots["_cloudpickle_submodules"].sort(key=lambda module: module.__name__)
        for name in ("__file__", "__path__"):
            namespace.pop(name, None)
        return make, (code, home or namespace, *rest), state, None, None, setter

    # cloudpickle's own method, which _dynamic_function_reduce calls on its pickler.
    _function_getnewargs = Pickler._function_getnewargs

    def _globals(
        self, function: types.FunctionType, used: dict[str, Any]
    ) -> tuple[_ModuleDict | None, dict[str, Any]]:
        """The module namespace to run in, if one is needed, and the globals that travel by value.

        A module's own globals exist when it has been imported. By value travels what an
        import does not bind: above all what a script binds under its main guard.
        """
        name = function.__globals__.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or vars(module) is not function.__globals__:
            return None, used
        remote = program.container_name(module.__name__)
        if remote is None or not program.importable(module):
            return None, used
        names = program.bound_names(module.__name__)
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
        self.references.add(remote)
        home = self._namespaces.setdefault(remote, _ModuleDict(module))
        return home, loose

    def _foreign(self, value: Any, home: types.ModuleType) -> bool:
        """Whether a global is a function or class that another module's name leads to."""
        if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return False
        module = program.module_of(value)
        if module is None or module is home or not program.importable(module):
            return False
        return program.find_name(module, value.__qualname__) is value

    def _module(self, obj: types.ModuleType) -> Any:
        remote = program.container_name(obj.__name__)
        if remote is not None and program.importable(obj):
            self.references.add(remote)
            return importlib.import_module, (remote,)
        if obj.__name__ in program.MAIN_NAMES:
            return importlib.import_module, ("__main__",)
        state = {key: value for key, value in vars(obj).items() if key != "__builtins__"}
        return dynamic_subimport, (obj.__name__, state)

    def _code(self, obj: types.CodeType) -> Any:
        self.codes.append(obj)
        consts = tuple(self.constant(value) for value in obj.co_consts)
        code = obj.replace(co_filename=self.rename(obj.co_filename), co_consts=consts)
        make, arguments = _code_reduce(code)
        # From 3.1.3 on cloudpickle drops the file name, which tracebacks need.
        return make, tuple(
            code.co_filename if value == "<dynamic-code>" else value for value in arguments
        )

    def constant(self, value: Any) -> Any:
        return value

    def _builtin(self, obj: Any) -> Any:
        module = program.module_of(obj)
        if module is not None and program.importable(module):
            self.references.add(module.__name__)
        return NotImplemented

    def _cached(self, obj: Any) -> Any:
        """An ``lru_cache``: the function with an empty cache."""
        options = obj.cache_parameters()
        size, typed = options["maxsize"], options["typed"]
        arguments = (obj.__wrapped__, size, typed, functools._CacheInfo)
        return functools._lru_cache_wrapper, arguments, vars(obj)

    def _decorated(self, obj: Any) -> Any:
        """Our own ``@function``: the plain callable that it is in a container."""
        return functools.partial, (obj.__wrapped__,)

    def _typevar(self, obj: Any) -> Any:
        track(obj)
        return _make_typevar, _decompose_typevar(obj)

    def _file(self, obj: Any) -> Any:
        for name in ("stdin", "stdout", "stderr"):
            if obj is getattr(sys, name) or obj is getattr(sys, f"__{name}__"):
                return getattr, (sys, name)
        raise TypeError(f"cannot pickle {describe(obj)}")


# The handlers of what travels by value only if no name leads to it in the container.
_NAMED = {Reducer._function, Reducer._cached, Reducer._decorated, Reducer._typevar}
_HANDLERS: dict[type, Callable[[Reducer, Any], Any] | None] = {
    types.FunctionType: Reducer._function,
    types.BuiltinFunctionType: Reducer._builtin,
    types.ModuleType: Reducer._module,
    types.CodeType: Reducer._code,
    type: Reducer._class,
    typing.TypeVar: Reducer._typevar,
    functools._lru_cache_wrapper: Reducer._cached,
    _ModuleDict: lambda _, obj: (vars, (obj.module,)),
    **dict.fromkeys(_SENTINELS, lambda _, obj: _SENTINELS[type(obj)]),
}


def dump(kind: type[Reducer], value: Any, rename: Callable[[str], str]) -> tuple[bytes, Reducer]:
    """The pickle of a value by a :class:`FastPickler` or :class:`StablePickler`, and the pickler."""
    file = io.BytesIO()
    pickler: Any = kind(file, rename)
    pickler.dump(value)
    return file.getvalue(), pickler


class FastPickler(Reducer, Pickler):  # type: ignore[misc]
    """On the C pickler, for arguments. Sets keep this process's order."""


class StablePickler(Reducer, _PythonPickler):  # type: ignore[misc]
    """On the Python pickler: sets are sorted, and equal strings are one string.

    What is shared is otherwise an accident of interning and of how a ``.pyc`` was read.
    """

    dispatch_table = Pickler.dispatch_table

    def __init__(self, file: io.BytesIO, rename: Callable[[str], str]) -> None:
        super().__init__(file, rename)
        self._equal: dict[Any, Any] = {}
        self._inside_key = False

    def constant(self, value: Any) -> Any:
        if not isinstance(value, (tuple, frozenset)):
            return value
        try:
            # Version 2 has no references: equal values, equal bytes.
            return self._equal.setdefault(marshal.dumps(value, 2), value)
        except ValueError:
            return value

    def save_equal(self, obj: Any) -> None:
        one = self._equal.setdefault((type(obj), obj), obj)
        known = self.memo.get(id(one))
        if known is not None:
            self.write(self.get(known[0]))
        else:
            _PythonPickler.dispatch[type(obj)](self, one)

    def save_set(self, obj: set[Any]) -> None:
        self.write(pickle.EMPTY_SET)
        self.memoize(obj)
        self.write(pickle.MARK)
        for item in self._ordered(obj):
            self.save(item)
        self.write(pickle.ADDITEMS)

    def save_frozenset(self, obj: frozenset[Any]) -> None:
        self.write(pickle.MARK)
        for item in self._ordered(obj):
            self.save(item)
        if id(obj) in self.memo:
            self.write(pickle.POP_MARK + self.get(self.memo[id(obj)][0]))
            return
        self.write(pickle.FROZENSET)
        self.memoize(obj)

    def _ordered(self, items: Any) -> list[Any]:
        kinds = {type(item) for item in items}
        if len(kinds) == 1 and kinds <= {str, bytes, int, float, bool}:
            return sorted(items)
        # Not inside a key: an object whose set holds the object itself would never end.
        if self._inside_key:
            return list(items)
        try:
            return sorted(items, key=self._key)
        except (TypeError, ValueError, AttributeError, pickle.PicklingError, RecursionError):
            return list(items)

    def _key(self, item: Any) -> tuple[str, bytes]:
        file = io.BytesIO()
        pickler = StablePickler(file, self.rename)
        pickler._inside_key = True
        pickler.dump(item)
        return type(item).__qualname__, file.getvalue()

    dispatch: ClassVar[Any] = {
        **_PythonPickler.dispatch,
        **dict.fromkeys((str, bytes), save_equal),
        set: save_set,
        frozenset: save_frozenset,
    }


tracked: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes of this process that travelled by value; results must not overwrite them."""


def track(obj: Any) -> None:
    """Give a class (or TypeVar) that travels by value the same identity in every process.

    cloudpickle finds the caller's own class by it when an instance comes back.
    """
    with _DYNAMIC_CLASS_TRACKER_LOCK:
        if obj in tracked:
            return
        qualname = getattr(obj, "__qualname__", obj.__name__)
        stem = f"{obj.__module__}\0{qualname}\0{_fingerprint(obj)}"
        names = (
            hashlib.sha256(f"{stem}\0{number}".encode()).hexdigest()[:32] for number in count()
        )
        name = next(it for it in names if _DYNAMIC_CLASS_TRACKER_BY_ID.get(it) is None)
        _DYNAMIC_CLASS_TRACKER_BY_ID[name] = obj
        _DYNAMIC_CLASS_TRACKER_BY_CLASS[obj] = name
        tracked.add(obj)


def _fingerprint(obj: Any) -> str:
    """What a class looks like, so that its redefinition is another class."""
    digest = hashlib.sha256()
    for name, value in sorted(getattr(obj, "__dict__", {}).items()):
        function = getattr(value, "__func__", value)
        digest.update(name.encode())
        if isinstance(function, types.FunctionType):
            code = function.__code__
            plain = [c for c in code.co_consts if isinstance(c, (str, int, float, bytes))]
            digest.update(repr((code.co_code, code.co_names, plain)).encode())
        elif isinstance(value, (str, int, float, bytes)):
            digest.update(repr(value).encode())
    return digest.hexdigest()


def class_setstate(cls: Any, state: Any) -> Any:
    """cloudpickle's, except for a class of this process: that stays as it is."""
    return cls if cls in tracked else _class_setstate(cls, state)
