"""Pickles of arguments and results, in which a script's types have one name on every machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import operator
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from clustrix_containers.capture.source import program
from clustrix_containers.errors import CaptureError
from clustrix_containers.worker import contract

from . import unpicklable

_STABLE_LIMIT = 8 << 20
_SET_OPCODES = (pickle.EMPTY_SET, pickle.FROZENSET)


def dump_call(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    function: Callable[..., Any] | None = None,
) -> tuple[bytes, frozenset[str]]:
    """The pickle (protocol 5) of ``(args, kwargs)``, and the modules that it refers to.

    The names are dotted, without the standard library; :data:`contract.MAIN` is among them
    if it needs the script. They are the ``references`` of :func:`callables.capture`.
    ``function`` is used only to name the argument in a CaptureError.
    """
    from . import reduction

    call = (args, dict(kwargs))
    try:
        data, pickler = reduction.dump(reduction.FastPickler, call, _rename)
        # The order of sets, and what objects by value share, differ between processes.
        unstable = pickler.by_value or any(opcode in data for opcode in _SET_OPCODES)
        if unstable and len(data) <= _STABLE_LIMIT:
            with contextlib.suppress(RecursionError):
                data, pickler = reduction.dump(reduction.StablePickler, call, _rename)
    except Exception as error:
        raise _error(args, kwargs, function, error) from error
    if not pickler.references:
        return data, frozenset()
    # With the absolute imports in functions that are among the arguments.
    imported = {
        statement.module
        for code in pickler.codes
        for statement in program.imports_of(code)
        if statement.level == 0 and not statement.optional
    }
    return data, program.third_party_or_local(pickler.references | imported)


@functools.lru_cache(maxsize=4096)
def _rename(filename: str) -> str:
    return program.container_path(filename) or (filename if filename == "<stdin>" else "<source>")


def _error(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    function: Callable[..., Any] | None,
    error: Exception,
) -> CaptureError:
    labelled = [(_argument(index, function), value) for index, value in enumerate(args)]
    labelled += [(f"argument '{name}'", value) for name, value in kwargs.items()]
    for label, value in labelled:
        if unpicklable.pickled(value) is None:
            name, part = unpicklable.find_unpicklable(value, label)
            what = unpicklable.describe(part)
            whole = "" if name.startswith(label) else f"{label}: "
            return CaptureError(
                f"{whole}{name} cannot be pickled: {what} ({error})",
                hint="Pass what it is made from (a path, a configuration) and create it in the "
                "function.",
                argument=label,
            )
    return CaptureError(f"the arguments cannot be pickled: {error}")


def _argument(index: int, function: Callable[..., Any] | None) -> str:
    ordinal = f"{index + 1}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(index + 1, 'th') }"
    if function is not None:
        with contextlib.suppress(TypeError, ValueError, IndexError):
            return f"argument '{list(inspect.signature(function).parameters)[index]}' ({ordinal})"
    return f"the {ordinal} argument"


def load(
    data: bytes | memoryview,
    buffers: Iterable[Any] = (),
    *,
    main: Callable[[], ModuleType],
) -> Any:
    """Unpickle what the worker wrote; ``main()`` is called for the script's module if needed.

    A class that travelled by value from this process is itself again, not a copy. The bytes
    must have been verified: unpickling runs code.
    """
    return _Unpickler(io.BytesIO(data), main, buffers).load()


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, main: Callable[[], ModuleType], buffers: Iterable[Any]
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._main = main
        started = program.current_main()
        self._started = started.module if started.kind == "module" else None

    def find_class(self, module: str, name: str) -> Any:
        if module == contract.MAIN:
            return operator.attrgetter(name)(self._main())
        if module == "importlib" and name == "import_module":
            return self._import
        if module.startswith("cloudpickle") and name == "_class_setstate":
            from .reduction import class_setstate

            return class_setstate
        if module == self._started:
            with contextlib.suppress(AttributeError):
                return operator.attrgetter(name)(sys.modules["__main__"])
        return super().find_class(module, name)

    def _import(self, name: str) -> ModuleType:
        if name == contract.MAIN:
            return self._main()
        return sys.modules["__main__"] if name == self._started else importlib.import_module(name)
