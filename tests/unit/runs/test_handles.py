"""Handles as the record keeps them: small for arrays, whatever a scheduler's ids look like."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustrix_containers.clusters.task import Handle
from clustrix_containers.runs.record.handles import pack, unpack


@pytest.mark.parametrize(
    "template",
    [
        "namespace",
        "/home/ü/state/run-1",
        "123[{0}].server",
        "123[{0}]",
        "123_{0}",
        "1{0}_{0}",
        "123.{1}",
        "run-7/{0}.0",
    ],
)
def test_an_array_of_any_size_is_one_small_object(template: str) -> None:
    handles = [Handle("r", 0, it, template.format(it, it + 1)) for it in range(10_000)]
    if template == "1{0}_{0}":
        # Two numbers that change are no pattern; they are kept one by one.
        handles = handles[:20]
    packed = json.loads(json.dumps(pack(handles)))
    assert len(packed) == 1
    assert len(json.dumps(packed)) < 600
    assert list(unpack(packed, "r").values()) == handles


def test_of_two_handles_of_an_element_the_later_counts() -> None:
    first = [Handle("r", 0, it, f"5_{it}") for it in range(4)]
    again = [Handle("r", 1, 1, "6"), Handle("r", 1, 3, "7")]
    third = [Handle("r", 2, 3, "8")]
    found = unpack([*pack(first), *pack(again), *pack(third)], "r")
    assert found == {0: first[0], 1: again[0], 2: first[2], 3: third[0]}


def test_handles_of_several_attempts_at_once() -> None:
    handles = [Handle("r", 1, 0, "x"), Handle("r", 1, 2, "x"), Handle("r", 2, 5, "y")]
    assert list(unpack(pack(handles), "r").values()) == handles
    assert pack([]) == []


@given(
    st.dictionaries(
        st.integers(0, 50), st.tuples(st.integers(0, 2), st.text(max_size=6)), max_size=8
    )
)
def test_what_is_packed_is_unpacked(chosen: dict[int, tuple[int, str]]) -> None:
    handles = [Handle("r", attempt, element, text) for element, (attempt, text) in chosen.items()]
    packed = json.loads(json.dumps(pack(handles)))
    assert unpack(packed, "r") == {handle.element: handle for handle in handles}
