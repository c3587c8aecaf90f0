"""A program: functions by value, with whatever cloudpickle is on ``PYTHONPATH``.

``python -m tests.unit.capture.by_value CLOUDPICKLE WORK [run]``: ``CLOUDPICKLE`` is the directory
that cloudpickle must come from. Prints a digest of all pickles; with ``run`` each function is also
loaded and called, some in a container of ``container.py``, and every private function of
cloudpickle that the product uses must have been called.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import cloudpickle.cloudpickle

from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.pickling import reduction

from . import container
from .test_callables import KINDS

_CLASSES = """
import dataclasses, enum, functools, types, typing
class Meta(type):
    def kind(cls): return "meta"
def o():
    T = typing.TypeVar("T", bound=int)
    made = types.ModuleType("made_here")
    made.value = 3
    class Color(enum.Enum):
        RED = 1
    class Slots(metaclass=Meta):
        __slots__ = ("a",)
        words = {"p", "q", "r"}
    class Box(typing.Generic[T]):
        pass
    @dataclasses.dataclass
    class Point:
        x: int = 1
        color: Color = Color.RED
        tags: list = dataclasses.field(default_factory=list)
    def f(x):
        class Result:
            def __init__(self, value): self.value = value
            def __eq__(self, other): return self.value == other
            __hash__ = None
        s = Slots()
        s.a = x
        names = (Box.__parameters__[0] is T, T.__bound__, Slots.kind(), sorted(Slots.words))
        return Result((s.a, made.value, Point().color.name, names, Ellipsis, type(None)))
    return f
"""
_WITHOUT_MODULE = """
def g(x): return x + 1
g.__module__ = None
def o():
    h = g
    return lambda x: h(x)
"""
SAMPLES: dict[str, tuple[str, str, tuple[Any, ...], Any]] = {
    name: (source, expression, args, expected)
    for name, (source, expression, args, expected, kind) in KINDS.items()
    if kind == "value"
}
SAMPLES["classes"] = (
    _CLASSES,
    "m.o()",
    (1,),
    (1, 3, "RED", (True, int, "meta", ["p", "q", "r"]), Ellipsis, type(None)),
)
SAMPLES["function without a module"] = (_WITHOUT_MODULE, "m.o()", (1,), 2)
IN_CONTAINER = ("classes", "function without a module", "cached recursion by value")


def _private_functions() -> set[str]:
    """What reduction.py takes from cloudpickle, tables and the lock aside."""
    return {"_dynamic_function_reduce", "_function_getnewargs"} | {
        name
        for name, value in vars(reduction).items()
        if isinstance(value, types.FunctionType) and value.__module__ == "cloudpickle.cloudpickle"
    }


def main(release: Path, work: Path, *, run: bool) -> None:
    source = cloudpickle.cloudpickle.__file__
    assert Path(source).is_relative_to(release), source
    called: set[str] = set()

    def profile(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == source:
            called.add(frame.f_code.co_name)

    digest = hashlib.sha256()
    modules = work / "modules"
    modules.mkdir(parents=True)
    sys.path.insert(0, str(modules))
    sys.dont_write_bytecode = True
    for number, (title, sample) in enumerate(SAMPLES.items()):
        text, expression, args, expected = sample
        name = f"sample_{number}"
        (modules / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        function = eval(expression, {"m": importlib.import_module(name)})
        sys.setprofile(profile)
        bundle = capture(function)
        assert bundle.function is not None
        digest.update(bundle.function)
        if run:
            assert pickle.loads(bundle.function)(*args) == expected, text
        if run and title in IN_CONTAINER:
            (work / name).mkdir()
            assert container.run(bundle, work / name, args) == expected, text
        sys.setprofile(None)
    assert not run or called >= _private_functions(), _private_functions() - called
    print(digest.hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), run="run" in sys.argv[3:])
