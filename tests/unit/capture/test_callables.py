"""Every kind of callable: how it travels, and that it runs where nothing else of here is."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.capture.callables import capture
from clustrix_containers.errors import CaptureError
from clustrix_containers.worker import contract

from . import container

KINDS = {
    "module-level": ("def f(x): return x + 1", "m.f", (1,), 2, "module"),
    "tabs": ("if True:\n\tdef f(x):\n\t\treturn x + 1\n", "m.f", (1,), 2, "module"),
    "in try": (
        "try:\n    def f(x): return x\nexcept Exception: pass",
        "m.f",
        (1,),
        1,
        "module",
    ),
    "nested": (
        "def o():\n    def f(x): return x * K\n    return f\nK = 3",
        "m.o()",
        (2,),
        6,
        "value",
    ),
    "closure": ("def o(k):\n    def f(x): return x * k\n    return f", "m.o(5)", (2,), 10, "value"),
    "lambda": ("f = lambda x: x + K\nK = 2", "m.f", (1,), 3, "value"),
    "method of an instance": (
        "class C:\n    def __init__(self, k): self.k = k\n    def f(self, x): return x + self.k",
        "m.C(4).f",
        (1,),
        5,
        "value",
    ),
    "static method": (
        "class C:\n    @staticmethod\n    def f(x): return x + 1",
        "m.C.f",
        (1,),
        2,
        "module",
    ),
    "class method": (
        "class C:\n    k = 7\n    @classmethod\n    def f(cls, x): return x + cls.k",
        "m.C.f",
        (1,),
        8,
        "module",
    ),
    "inherited class method": (
        "class B:\n    @classmethod\n    def f(cls): return cls.__name__\nclass C(B): pass",
        "m.C.f",
        (),
        "C",
        "module",
    ),
    "in a class body": (
        "class A:\n    class B:\n        def f(x): return x + 1",
        "m.A.B.f",
        (1,),
        2,
        "module",
    ),
    "class": ("class C(int): pass", "m.C", (3,), 3, "module"),
    "callable instance": (
        "class C:\n    def __init__(self): self.k = 2\n    def __call__(self, x): return x + self.k",
        "m.C()",
        (1,),
        3,
        "value",
    ),
    "partial": (
        "import functools\ndef g(a, b): return a - b\nf = functools.partial(g, b=1)",
        "m.f",
        (5,),
        4,
        "value",
    ),
    "wraps": (
        """
import functools
def twice(g):
    @functools.wraps(g)
    def w(*a): return 2 * g(*a)
    return w
@twice
def f(x): return x + 1
""",
        "m.f",
        (1,),
        4,
        "module",
    ),
    "two decorators over lines": (
        """
import functools
def add(n, *, m):
    def d(g):
        @functools.wraps(g)
        def w(*a): return g(*a) + n + m
        return w
    return d
@add(
    10,
    m=100,
)
@add(1, m=0)
def f(x): return x
""",
        "m.f",
        (1000,),
        1111,
        "module",
    ),
    "decorated without wraps": (
        "def d(g):\n    def w(x): return g(x) + 1\n    return w\n@d\ndef f(x): return x",
        "m.f",
        (1,),
        2,
        "value",
    ),
    "decorated into an object": (
        (
            "class D:\n    def __init__(s, g): s.g = g\n    def __call__(s, x): return s.g(x) + 1\n"
            "@D\ndef f(x): return x"
        ),
        "m.f",
        (1,),
        2,
        "value",
    ),
    "text at column 0": (
        (
            'class C:\n    def m(self):\n        def f():\n            return """a\nb\n  c"""\n'
            "        return f"
        ),
        "m.C().m()",
        (),
        "a\nb\n  c",
        "value",
    ),
    "async": ("async def f(x): return x + 1", "m.f", (1,), 2, "module"),
    "generator": ("def f(n):\n    yield from range(n)", "m.f", (3,), [0, 1, 2], "module"),
    "recursion": ("def f(n): return 1 if n < 2 else n * f(n - 1)", "m.f", (5,), 120, "module"),
    "mutual recursion by value": (
        """
def o():
    def even(n): return True if n == 0 else odd(n - 1)
    def odd(n): return False if n == 0 else even(n - 1)
    return even
""",
        "m.o()",
        (10,),
        True,
        "value",
    ),
    "cached recursion by value": (
        """
import functools
def o():
    @functools.lru_cache(maxsize=None)
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    return fib
""",
        "m.o()",
        (40,),
        102334155,
        "value",
    ),
    "cached": (
        "import functools\n@functools.lru_cache\ndef f(x): return x",
        "m.f",
        (4,),
        4,
        "module",
    ),
    "defaults that are objects": (
        (
            "import collections\nD = collections.OrderedDict(a=1)\n"
            "def o():\n    def f(d=D, *, e=frozenset({1})): return d, e\n    return f"
        ),
        "m.o()",
        (),
        ({"a": 1}, frozenset({1})),
        "value",
    ),
    "unicode names": (
        "def grüße(größe): return größe + 1\ndef o():\n    ψ = 2\n    return lambda x: grüße(x) + ψ",
        "m.o()",
        (1,),
        4,
        "value",
    ),
    "module state that cannot be pickled": (
        (
            "import threading\nLOCK = threading.Lock()\n"
            "def o():\n    def f(x):\n        with LOCK: return x\n    return f"
        ),
        "m.o()",
        (1,),
        1,
        "value",
    ),
    "assigned under another name": (
        "def g(x): return x + 1\nf = g\ng = None",
        "m.f",
        (1,),
        2,
        "value",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_runs_elsewhere(name: str, project: Any, tmp_path: Path) -> None:
    source, expression, args, expected, kind = KINDS[name]
    project.write({"m.py": source})
    function = eval(expression, {"m": project.load("m")})
    bundle = capture(function)
    assert bundle.entry.kind == kind
    assert container.run(bundle, tmp_path, args) == expected


def test_undecorated_function_behind_our_decorator_is_found_by_name(
    project: Any, tmp_path: Path
) -> None:
    project.write(
        {
            "ours.py": """
            import functools
            class Function:
                __clustrix_function__ = True
                def __init__(self, f):
                    functools.update_wrapper(self, f)
                def __call__(self, *a): return self.__wrapped__(*a)
            """,
            "m.py": """
            import functools
            import ours
            def loud(g):
                @functools.wraps(g)
                def w(x): return g(x) + 100
                return w
            @ours.Function
            @loud
            def f(x): return x
            def o():
                @ours.Function
                def g(x): return f(x)
                return g
            """,
        }
    )
    m = project.load("m")
    for number, function in enumerate((m.f, m.f.__wrapped__)):
        bundle = capture(function)
        assert (bundle.entry.kind, bundle.entry.qualname) == ("module", "f")
        work = tmp_path / str(number)
        work.mkdir()
        assert container.run(bundle, work, (1,)) == 101
    bundle = capture(m.o())
    assert bundle.entry.kind == "value"
    assert container.run(bundle, tmp_path, (1,)) == 101


def test_builtin_and_installed_functions_need_no_source(tmp_path: Path) -> None:
    import math

    import numpy.linalg

    bundle = capture(math.sqrt)
    assert bundle.files == ()
    assert bundle.imports == ()
    assert container.run(bundle, tmp_path, (9.0,)) == 3.0
    bundle = capture(numpy.linalg.norm)
    assert bundle.entry.kind == "module"
    assert [found.module for found in bundle.imports] == ["numpy.linalg"]
    assert capture(numpy.sin).imports[0].module.startswith("numpy")


def test_types_beside_the_function_come_back_as_themselves(project: Any, tmp_path: Path) -> None:
    project.write(
        {
            "m.py": """
            from __future__ import annotations
            import dataclasses, enum
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                import does_not_exist
            class Color(enum.Enum):
                RED = 1
            @dataclasses.dataclass
            class Point:
                x: int
                c: Color = Color.RED
                tags: list = dataclasses.field(default_factory=list)
            def f(p: Point, q: does_not_exist.Q = None) -> Point:
                return dataclasses.replace(p, x=p.x + 1)
            def local():
                class Inner:
                    def __init__(self): self.v = 1
                def g(): return Inner()
                return Inner, g
            """
        }
    )
    m = project.load("m")
    result = container.run(capture(m.f), tmp_path, (m.Point(1),))
    assert type(result) is m.Point
    assert result == m.Point(2)
    assert result.c is m.Color.RED
    inner, function = m.local()
    init = inner.__init__
    result = container.run(capture(function), tmp_path)
    assert type(result) is inner
    assert result.v == 1
    assert inner.__init__ is init


def test_traceback_shows_the_source(project: Any, tmp_path: Path) -> None:
    project.write(
        {
            "m.py": """
            class C:
                def make(self):
                    def f():
                        text = '''
            at column 0'''
                        return 1 / 0  # the culprit
                    return f
            def top():
                return 1 / 0  # top's
            """
        }
    )
    m = project.load("m")
    assert "# top's" in container.error(capture(m.top), tmp_path)
    bundle = capture(m.C().make())
    assert bundle.function is not None
    # Its code says where it is in a container, and the file is there.
    assert f"{contract.CODE}/m.py".encode() in bundle.function
    assert str(project.root).encode() not in bundle.function
    assert [file.path for file in bundle.files] == ["m.py"]
    assert b"# the culprit" in bytes(bundle.files[0].content)


def test_by_value_takes_along_only_what_it_uses(project: Any) -> None:
    project.write(
        {
            "heavy.py": "import numpy\nfrom light import g\nimport light\n"
            "def o():\n    def f(x):\n        import pandas\n        return g(x) + light.K\n    return f",
            "light.py": "K = 1\ndef g(x): return x",
        }
    )
    bundle = capture(project.load("heavy").o())
    assert [found.module for found in bundle.imports] == ["pandas"]
    assert sorted(file.path for file in bundle.files) == ["heavy.py", "light.py"]


def test_module_that_imports_us_needs_none_of_our_dependencies(
    project: Any, tmp_path: Path
) -> None:
    project.write({"m.py": "import clustrix_containers as cx\ndef f(): return cx.__name__"})
    bundle = capture(project.load("m").f)
    assert bundle.imports == ()
    assert container.run(bundle, tmp_path) == "clustrix_containers"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "def o():\n    f = open('data.csv', 'w+')\n    def train(): return f.read()\n    return train",
            ["closure variable 'f' of 'train'", "an open file ('data.csv')"],
        ),
        (
            (
                "import threading\ndef o():\n    lock = threading.Lock()\n"
                "    def train(x=lock): return x\n    return train"
            ),
            ["default of parameter 'x' of 'train'", "a lock"],
        ),
        (
            (
                "import threading\ndef o():\n    cfg = {'deep': [threading.Lock()]}\n"
                "    return lambda: cfg"
            ),
            ["closure variable 'cfg' of '<lambda>', key 'deep', item 0", "a lock"],
        ),
        (
            "import socket\ndef o():\n    s = socket.socket()\n    s.close()\n    return lambda: s",
            ["closure variable 's'", "a socket"],
        ),
        (
            "def o():\n    g = (i for i in [])\n    return lambda: g",
            ["closure variable 'g'", "a running generator"],
        ),
        (
            "import threading\ndef o():\n    t = threading.Thread(name='T')\n    return lambda: t",
            ["closure variable 't'", "a thread ('T')"],
        ),
        (
            (
                "import sqlite3\nclass C:\n    def __init__(self, db): self.db = db\n"
                "    def run(self): pass\ndef o():\n    db = sqlite3.connect(':memory:')\n"
                "    db.close()\n    return C(db).run"
            ),
            ["attribute 'db' of the instance that 'C.run' is bound to", "sqlite3.Connection"],
        ),
        (
            (
                "import functools, threading\ndef g(a): pass\n"
                "def o(): return functools.partial(g, threading.Lock())"
            ),
            ["argument 0 of a partial of g", "a lock"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_cannot_travel_is_named(
    source: str, words: list[str], project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write({"m.py": source})
    monkeypatch.chdir(project.root)
    with pytest.raises(CaptureError) as caught:
        capture(project.load("m").o())
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    # What the source left open is closed while its warning is expected.
    del caught
    gc.collect()


def test_not_callable() -> None:
    with pytest.raises(CaptureError, match="not callable"):
        capture(3)  # type: ignore[arg-type]


def test_made_up_modules_travel_by_value(tmp_path: Path) -> None:
    import types

    made = types.ModuleType("made_up_here")
    exec("K = 4\ndef f(x): return x + K", made.__dict__)
    sys.modules["made_up_here"] = made
    try:
        bundle = capture(made.f)
    finally:
        del sys.modules["made_up_here"]
    assert bundle.entry.kind == "value"
    assert bundle.files == ()
    assert container.run(bundle, tmp_path, (1,)) == 5


def test_name_of_a_partial() -> None:
    assert capture(functools.partial(int, base=2)).entry.name == "partial of int"
