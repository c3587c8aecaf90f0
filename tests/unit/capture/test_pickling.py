"""Arguments: fast, stable, and errors that name the argument."""

from __future__ import annotations

import pickle
import threading
import time
import timeit
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.capture.pickling import dump_call, load
from clustrix_containers.errors import CaptureError
from clustrix_containers.worker import contract


def _no_script() -> Any:
    raise AssertionError("no script is needed")


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)
_hashable = (
    st.none() | st.integers() | st.text() | st.binary() | st.tuples(st.text(), st.integers())
)


@given(st.lists(_plain | st.sets(_hashable) | st.frozensets(_hashable)))
def test_round_trip(values: list[Any]) -> None:
    data, names = dump_call(tuple(values), {"k": values})
    assert names == frozenset()
    assert pickle.loads(data) == (tuple(values), {"k": values})
    assert load(data, main=_no_script) == (tuple(values), {"k": values})


def test_recursive_sets() -> None:
    class Node:
        pass

    node = Node()
    node.inside = {node, 1}  # type: ignore[attr-defined]
    node.frozen = frozenset({node, 2})  # type: ignore[attr-defined]
    data, _ = dump_call((node,), {})
    (copy,), _ = load(data, main=_no_script)
    assert type(copy) is Node
    assert copy in copy.inside
    assert copy in copy.frozen


def test_references() -> None:
    import numpy
    import pandas

    _, names = dump_call((numpy.zeros(3), OrderedDict()), {})
    assert {name.partition(".")[0] for name in names} == {"numpy"}
    _, names = dump_call((), {"d": pandas.DataFrame({"a": [1]})})
    assert {name.partition(".")[0] for name in names} == {"numpy", "pandas"}
    _, names = dump_call((numpy.sin,), {})
    assert {name.partition(".")[0] for name in names} == {"numpy"}


def test_references_to_local_modules(project: Any) -> None:
    project.write(
        {
            "pkg/__init__.py": "",
            "pkg/types_.py": "import enum\nclass T: pass\nclass E(enum.Enum):\n    A = 1\ndef g(): pass",
        }
    )
    m = project.load("pkg.types_")
    for value in (m.T(), m.E.A, m.g, {"k": [m.T]}, m):
        assert dump_call((value,), {})[1] == {"pkg.types_"}


def test_imports_of_functions_among_the_arguments() -> None:
    def key(x: int) -> int:
        import numpy

        return int(numpy.sign(x))

    assert "numpy" in dump_call((key,), {})[1]


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, threading.Lock()), {}, ["argument 'data' (2nd)", "a lock"]),
        ((), {"data": {"deep": [threading.Lock()]}}, ["argument 'data', key 'deep', item 0"]),
        ((1, 2, (i for i in [])), {}, ["the 3rd argument", "a running generator"]),
    ],
)
def test_what_cannot_be_pickled_is_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: list[str]
) -> None:
    def function(first: int, data: object) -> None:
        pass

    with pytest.raises(CaptureError) as caught:
        dump_call(args, kwargs, function=function)
    for word in words:
        assert word in str(caught.value)


def test_open_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1")
    with (tmp_path / "data.csv").open() as file, pytest.raises(CaptureError, match="an open file"):
        dump_call((file,), {})
    import sys

    data, _ = dump_call((sys.stdout,), {})
    assert load(data, main=_no_script)[0] == (sys.stdout,)


def test_deep_recursion_is_an_error_or_a_pickle() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CaptureError, match="argument"):
        dump_call((value, {1}), {})


def test_small_arguments_are_fast() -> None:
    """A map over 10,000 items pickles 10,000 calls: no dearer than cloudpickle's own."""
    import cloudpickle

    def best(function: Any) -> float:
        function()
        return min(timeit.repeat(function, timer=time.process_time, number=1000, repeat=5))

    ours = best(lambda: dump_call((7,), {"k": "text"}))
    assert ours < 4 * best(lambda: cloudpickle.dumps(((7,), {"k": "text"})))


def test_main_is_asked_for_only_when_needed() -> None:
    import types

    script = types.ModuleType("anything")
    script.T = int  # type: ignore[attr-defined]
    data = b"c" + contract.MAIN.encode() + b"\nT\n."
    assert load(data, main=lambda: script) is int
    data = pickle.dumps(1)
    assert load(data, main=_no_script) == 1


def test_out_of_band_buffers() -> None:
    import numpy

    buffers: list[pickle.PickleBuffer] = []
    array = numpy.arange(10)
    data = pickle.dumps(array, 5, buffer_callback=buffers.append)
    assert buffers
    assert (load(data, buffers, main=_no_script) == array).all()
