"""Every kind of callable really runs in the container, on every target."""

from __future__ import annotations

import functools
import traceback

import pytest

import clustrix_containers as cx
from clustrix_containers.errors import InsideImageError
from tests.cases import kinds
from tests.cases.kinds import Colour, Model, Point

from .targets import everywhere_but_most_on, on_targets


def nested_in_a_function():
    amount = 5

    def nested(x):
        return x + amount

    return nested


CASES = {
    "module-level": (kinds.plain, (1,), 103),
    "type hints under TYPE_CHECKING, try-import": (kinds.annotated, (1,), 2),
    "nested": (nested_in_a_function(), (1,), 6),
    "nested in a method, with its indentation": (kinds.Maker().make_nested(), (1,), [1, 2]),
    "closure": (kinds.make_closure(4), (1,), 5),
    "lambda": (lambda x: x * 3, (2,), 6),
    "method": (Model.method, (Model(1), 2), 7),
    "bound method": (Model(5).method, (2,), 11),
    "staticmethod": (Model.static, (2,), 20),
    "classmethod": (Model.by_class, (2,), 6),
    "callable instance": (Model(5), (2,), 3),
    "class inside a class": (Model.Inner.deep, (2,), -2),
    "partial": (functools.partial(kinds.plain, y=50), (1,), 152),
    "decorated with wraps": (kinds.wrapped, (1,), 4),
    "multi-line decorator": (kinds.multi_line_decorator, (1,), 22),
    "two decorators": (kinds.two_decorators, (1,), 6),
    "our decorator": (kinds.decorated, (1,), 2),
    "our decorator, calling another": (kinds.calls_another, (1,), 4),
    "inside if": (kinds.inside_if, (1,), 8),
    "inside try": (kinds.inside_try, (1,), 9),
    "indented with tabs": (kinds.Tabs.tabbed, (1,), 10),
    "multi-line string at column 0": (kinds.text_at_column_0, (1,), 4),
    "async def": (kinds.asynchronous, (1,), 12),
    "generator": (kinds.generator, (4,), [0, 1, 4, 9]),
    "async generator": (kinds.asynchronous_generator, (2,), [1, 2]),
    "recursion": (kinds.factorial, (5,), 120),
    "mutual recursion": (kinds.is_even, (10,), True),
    "defaults that are objects": (kinds.default_object, (1,), 4),
    "dataclass and enum": (kinds.move, (Point(1), Colour.RED), Point(2, 0, ["red"])),
    "enum identity": (kinds.invert, (Colour.RED,), Colour.BLUE),
    "import_module of a literal": (kinds.uses_literal_import, (1,), '{"x": 1}'),
    "package data by importlib.resources": (kinds.reads_data, (), [2, 4, 6]),
    "Unicode names": (kinds.größe, (2,), 4),
    "a builtin": (len, ([1, 2],), 2),
    "a class": (Point, (1, 2), Point(1, 2)),
}


HANDFUL = ("module-level", "closure", "dataclass and enum", "package data by importlib.resources")
"""What is enough on the other targets: the image is the same, byte for byte."""


@everywhere_but_most_on("sandbox", "case", list(CASES), HANDFUL)
def test_kind(case: str, on: str) -> None:
    function, args, expected = CASES[case]
    with cx.Executor(on) as executor:
        value = executor.submit(function, *args).result()
    assert value == expected
    assert type(value) is type(expected)


@on_targets("sandbox")
def test_exception_has_type_and_the_users_source_line(on: str) -> None:
    with cx.Executor(on) as executor, pytest.raises(KeyError, match="no 3 here") as info:
        executor.submit(kinds.fails, 3).result()
    text = "".join(traceback.format_exception(info.value))
    assert "the line that a traceback must show" in text


@on_targets("sandbox")
def test_exception_of_a_nested_function_has_its_source_line(on: str) -> None:
    with cx.Executor(on) as executor, pytest.raises(ZeroDivisionError) as info:
        executor.submit(kinds.fails_by_value(), 3).result()
    text = "".join(traceback.format_exception(info.value))
    assert "the line of a nested function" in text


@on_targets("sandbox")
def test_submit_inside_the_image_is_refused(on: str) -> None:
    def submits():
        import clustrix_containers

        with clustrix_containers.Executor() as executor:
            executor.submit(len, [])

    with cx.Executor(on) as executor, pytest.raises(InsideImageError, match="__main__"):
        executor.submit(submits).result()


SCRIPT = """
import enum
from dataclasses import dataclass

import clustrix_containers as cx


class Mode(enum.Enum):
    ON = 1


@dataclass(frozen=True)
class Answer:
    value: int
    mode: Mode


@cx.function(cpus=1)
def work(x: int, mode: Mode = Mode.ON) -> Answer:
    return Answer(x + 1, mode)


if __name__ == "__main__":
    job = work.submit(3)
    answer = job.result()
    assert answer == Answer(4, Mode.ON), answer
    assert type(answer) is Answer
    assert work(3) == answer
    print(job.run)
"""


def test_script_and_its_types_in_another_process(script, on: str) -> None:
    run = script(SCRIPT).stdout.strip()
    other = script(
        f"""
import clustrix_containers as cx
answer = cx.attach({run!r}).result(60)
assert answer.value == 4, answer
assert answer.mode.name == "ON"
print(type(answer).__name__)
""",
        name="other.py",
    )
    assert other.stdout == "Answer\n"


@on_targets("sandbox")
def test_unguarded_script_names_the_missing_guard(script, on: str) -> None:
    done = script(
        """
import clustrix_containers as cx

@cx.function
def work(x):
    return x

work.submit(3).result()
""",
        check=False,
    )
    assert done.returncode != 0
    assert 'if __name__ == "__main__"' in done.stderr
