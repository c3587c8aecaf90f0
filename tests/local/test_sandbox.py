from __future__ import annotations

from clustrix_containers.jobs import State

from .conftest import Bench


def test_a_value_comes_back(bench: Bench) -> None:
    task = bench.task("def f(x): return x + 1", [(1,), (2,)])
    ids = bench.submit(task)
    statuses = bench.wait(ids)
    assert [s.state for s in statuses] == [State.SUCCEEDED] * 2, bench.output(ids)
    assert [bench.value(task, 0), bench.value(task, 1)] == [2, 3]
