"""The pickler whose bytes depend on the value alone.

This module imports cloudpickle: import it inside functions.
"""

from __future__ import annotations

import io
import marshal
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle

from .reduction import Reducer

# The Python pickler, for which typeshed knows no more than that it exists.
_Python: Any = pickle._Pickler


class StablePickler(Reducer, _Python):  # type: ignore[misc]
    """On the Python pickler: sets are sorted, and equal strings are one string.

    What is shared is otherwise an accident of interning and of how a ``.pyc`` was read.
    """

    dispatch: ClassVar[Any] = dict(_Python.dispatch)
    dispatch_table = cloudpickle.Pickler.dispatch_table

    def __init__(self, file: io.BytesIO, place: Callable[[str], str]) -> None:
        super().__init__(file, protocol=5)
        self.prepare(place)
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
            self.dispatch_base[type(obj)](self, one)

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
        pickler = StablePickler(file, self.place)
        pickler._inside_key = True
        pickler.dump(item)
        return type(item).__qualname__, file.getvalue()

    dispatch_base: ClassVar[Any] = dict(dispatch)
    dispatch[str] = save_equal
    dispatch[bytes] = save_equal
    dispatch[set] = save_set
    dispatch[frozenset] = save_frozenset
