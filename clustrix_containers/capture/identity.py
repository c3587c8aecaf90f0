"""Which class a class that travelled by value is: the same in every process.

This module imports cloudpickle: import it inside functions.
"""

from __future__ import annotations

import hashlib
import types
import weakref
from typing import Any

from cloudpickle import cloudpickle as cp

tracked: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes of this process that travelled by value; results must not overwrite them."""


def track(obj: Any) -> None:
    """Give a class (or TypeVar) that travels by value the same identity in every process.

    cloudpickle finds the caller's own class by it when an instance comes back.
    """
    with cp._DYNAMIC_CLASS_TRACKER_LOCK:
        if obj in tracked:
            return
        stem = (
            f"{obj.__module__}\0{getattr(obj, '__qualname__', obj.__name__)}\0{_fingerprint(obj)}"
        )
        number = 0
        while True:
            name = hashlib.sha256(f"{stem}\0{number}".encode()).hexdigest()[:32]
            if cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(name) is None:
                break
            number += 1
        cp._DYNAMIC_CLASS_TRACKER_BY_ID[name] = obj
        cp._DYNAMIC_CLASS_TRACKER_BY_CLASS[obj] = name
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
