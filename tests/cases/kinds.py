"""One of every kind of callable that must travel, as a user's module would hold them."""

from __future__ import annotations

import asyncio
import enum
import functools
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import clustrix_containers as cx

if TYPE_CHECKING:
    from a_module_that_is_not_there import Nothing

try:
    import another_module_that_is_not_there as fast
except ImportError:
    fast = None

from . import helper
from .helper import double
from .kinds_pkg import read_table

json_module = importlib.import_module("json")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


def plain(x: int, y: int = 1) -> int:
    return double(x) + y + helper.OFFSET


def annotated(x: Nothing) -> int:
    return x + (1 if fast is None else 100)


@cx.function
def decorated(x):
    return x + 1


@cx.function(cpus=1)
def calls_another(x):
    return decorated(x) + decorated.local(x)


def twice(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return wrapper


def adding(amount, *, times):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs) + amount * times

        return wrapper

    return decorate


@twice
def wrapped(x):
    return x + 1


@adding(
    10,
    times=2,
)
def multi_line_decorator(x):
    return x + 1


@twice
@adding(1, times=1)
def two_decorators(x):
    return x + 1


class Model:
    scale = 3

    def __init__(self, bias):
        self.bias = bias

    def method(self, x):
        return self.scale * x + self.bias

    @staticmethod
    def static(x):
        return x * 10

    @classmethod
    def by_class(cls, x):
        return cls.scale * x

    def __call__(self, x):
        return self.bias - x

    class Inner:
        @staticmethod
        def deep(x):
            return -x


if True:

    def inside_if(x):
        return x + 7


try:

    def inside_try(x):
        return x + 8
except ValueError:
    pass


# fmt: off
class Tabs:
	@staticmethod
	def tabbed(x):
		if x:
			return x + 9
		return 0
# fmt: on


def text_at_column_0(x):
    text = """
first
  second
third"""
    return text.count("\n") + x


async def asynchronous(x):
    await asyncio.sleep(0)
    return x + 11


def generator(n):
    for i in range(n):
        yield i * i


async def asynchronous_generator(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i + 1


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def is_even(n):
    return n == 0 or is_odd(n - 1)


def is_odd(n):
    return n != 0 and is_even(n - 1)


def default_object(x, point=Point(1, 2)):  # noqa: B008
    return x + point.x + point.y


def move(point: Point, colour: Colour) -> Point:
    return Point(point.x + 1, point.y, [*point.tags, colour.value])


def invert(colour: Colour) -> Colour:
    return Colour.BLUE if colour is Colour.RED else Colour.RED


def uses_literal_import(x):
    return json_module.dumps({"x": x})


def reads_data():
    return read_table()


def größe(länge):
    return länge * 2


def make_closure(amount):
    def inner(x):
        return x + amount

    return inner


class Maker:
    def make_nested(self):
        # The system that this one replaces died of this indentation.
        def nested(x):
            """A doc string
that goes back to column 0."""
            return [
                x,
                x + 1,
            ]

        return nested


def fails(x):
    raise KeyError(f"no {x} here")  # the line that a traceback must show


def fails_by_value():
    def inner(x):
        raise ZeroDivisionError(x)  # the line of a nested function

    return inner
