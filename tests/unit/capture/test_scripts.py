"""``__main__``: scripts, ``python -m``, a REPL, standard input; in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.pickling import dump_call, load
from clustrix_containers.capture.source import program
from clustrix_containers.worker import contract

from . import container

_RUN = """
from pathlib import Path
import tempfile
from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.pickling import dump_call
from tests.unit.capture import container
def go(function, *args, **options):
    with tempfile.TemporaryDirectory() as work:
        _, names = dump_call(args, {})
        bundle = capture(function, references=names, **options)
        return bundle, container.run(bundle, Path(work), args)
"""

_SCRIPT = """
import dataclasses, enum, sys, threading
import helper
HIDDEN = threading.Lock()
K = 1
class Color(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Point:
    x: int
    class Inner:
        pass
def top(p, c=Color.RED):
    return Point(helper.inc(p.x) + K), c
def outer(k):
    def inner(p):
        with HIDDEN:
            return Point(p.x + k + K)
    return inner
if __name__ == "__main__":
    import run
    g = 10
    K2 = 3
    def guarded(x): return x + g
    class OnlyHere:
        def __init__(self): self.v = K2
"""


def _script(project: Any, body: str, name: str = "my script.py") -> Path:
    indented = "\n".join("    " + line for line in body.strip().splitlines())
    project.write({"helper.py": "def inc(x): return x + 1", "run.py": _RUN})
    project.write({name: _SCRIPT + indented + "\n"})
    return Path(project.root / name)


def test_script_kinds(project: Any) -> None:
    body = """
bundle, (point, color) = run.go(top, Point(1))
assert type(point) is Point and point.x == 3 and color is Color.RED, point
assert bundle.entry.kind == "script" and bundle.entry.module == "__clustrix_main__"
assert bundle.entry.script == "my script.py" and bundle.entry.qualname == "top"
assert [f.path for f in bundle.files] == ["helper.py", "my script.py"], bundle.files
assert bundle.main.name == "my script.py"
bundle, point = run.go(outer(5), Point(1))
assert bundle.entry.kind == "value" and type(point) is Point and point.x == 7
bundle, value = run.go(guarded, 1)
assert bundle.entry.kind == "value" and bundle.entry.script is None and value == 11
bundle, value = run.go(lambda p: top(Point(g)), Point(1))
assert value[0] == Point(12)
bundle, value = run.go(lambda: OnlyHere())
assert type(value) is OnlyHere and value.v == 3
bundle, value = run.go(lambda c: c, Point.Inner)
assert value is Point.Inner
bundle, value = run.go(Point, 3)
assert bundle.entry.kind == "script" and value == Point(3)
print("done")
"""
    assert project.python(str(_script(project, body))) == "done\n"


def test_global_set_under_the_main_guard_is_noted(project: Any) -> None:
    program = """
def f(x): return x + scale
if __name__ == "__main__":
    scale = 2
    from clustrix_containers.capture.callables import capture
    for note in capture(f).notes: print(note.where, note.message)
    for note in capture(lambda: scale).notes: print(note)
"""
    path = project.write({"s.py": program}) / "s.py"
    (line,) = project.python(str(path)).splitlines()
    assert line.startswith("s.py:2 f uses scale, which is set only under if __name__")


def test_script_reached_only_by_arguments(project: Any) -> None:
    body = """
from clustrix_containers.capture.pickling import dump_call
data, names = dump_call((Point(1),), {})
assert names == {"__clustrix_main__"}, names
from clustrix_containers.capture.callables import capture
bundle = capture(helper.inc, references=names)
assert bundle.entry.kind == "module" and bundle.entry.script == "my script.py"
assert "my script.py" in [f.path for f in bundle.files]
print("done")
"""
    assert project.python(str(_script(project, body))) == "done\n"


def test_results_of_script_types_load_in_another_process(project: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    body = f"""
from pathlib import Path
from clustrix_containers.capture.pickling import dump_call
work = Path({str(tmp_path)!r})
data, _ = dump_call((Point(1),), {{}})
from clustrix_containers.capture.callables import capture
from tests.unit.capture import container
bundle = capture(top)
container.run_raw(container.unpack(bundle, work / "code"), data, work)
"""
    script = _script(project, body)
    project.python(str(script))
    source = (tmp_path / "code" / script.name).read_bytes()
    before = set(sys.modules)
    outcome, (point, color) = load(
        out.read_bytes(), main=lambda: program.script_module(script, lambda: source)
    )
    assert outcome == "ok"
    assert point.x == 3
    assert color.name == "RED"
    name = type(point).__module__
    assert name.startswith(contract.MAIN + ".")
    # The same again is the same type; and it can be an argument again.
    _, (again, _) = load(
        out.read_bytes(), main=lambda: program.script_module(script, lambda: source)
    )
    assert type(again) is type(point) or type(again).__module__ != name
    data, names = dump_call((point,), {})
    assert names == {contract.MAIN}
    assert b"__clustrix_main__." not in data
    for added in set(sys.modules) - before:
        if added.startswith(contract.MAIN):
            del sys.modules[added]


def test_python_dash_m(project: Any) -> None:
    project.write(
        {
            "run.py": _RUN,
            "pkg/__init__.py": "",
            "pkg/other.py": "def inc(x): return x + 1",
            "pkg/mod.py": """
            from .other import inc
            class T:
                def __init__(self, v): self.v = v
            def top(t): return T(inc(t.v))
            def outer():
                def inner(t): return T(inc(t.v))
                return inner
            if __name__ == "__main__":
                import run
                for function, kind in ((top, "module"), (outer(), "value"), (lambda t: top(t), "value")):
                    bundle, value = run.go(function, T(1))
                    assert (bundle.entry.kind, bundle.entry.module) == (kind, "pkg.mod"), bundle.entry
                    assert bundle.main is None and bundle.entry.script is None
                    assert type(value) is T and value.v == 2, value
                print("done")
            """,
        }
    )
    assert project.python("-m", "pkg.mod") == "done\n"


_INTERACTIVE = """
import math
import run
K = 2
class Thing:
    def __init__(self, v): self.v = v
    def area(self): return math.pi * self.v * K

def f(t):
    import json
    return Thing(t.v + json.loads("1"))

bundle, value = run.go(f, Thing(1))
assert type(value) is Thing and value.v == 2 and value.area() > 12, value
assert bundle.entry.kind == "value" and bundle.main is None
# From 3.13 on Python itself keeps the source of what is typed.
assert all(f.path.startswith(".clustrix/cells/") for f in bundle.files), bundle.files
bundle, value = run.go(lambda: K)
print("done", value)
"""


def test_standard_input_and_dash_c(project: Any) -> None:
    project.write({"run.py": _RUN})
    assert project.python("-", stdin=_INTERACTIVE) == "done 2\n"
    assert project.python("-c", _INTERACTIVE) == "done 2\n"


def test_interactive_imports_are_seen_without_source(project: Any) -> None:
    project.write({"run.py": _RUN, "local_one.py": "import numpy\nX = 5"})
    program = """
def f():
    import pandas
    from local_one import X
    return X

from clustrix_containers.capture.callables import capture
bundle = capture(f)
print([i.module for i in bundle.imports], [f.path for f in bundle.files])
"""
    assert project.python("-", stdin=program) == "['numpy', 'pandas'] ['local_one.py']\n"


def test_interactive_after_a_script(project: Any) -> None:
    """``python -i``: Python itself forgets the script's file when the prompt comes."""
    project.write({"run.py": _RUN, "s.py": "K = 1\ndef f(): return K\n"})
    program = """
import run
def typed(): return f() + 1

bundle, value = run.go(typed)
print(bundle.entry.kind, value)
bundle, value = run.go(f)
print(bundle.entry.kind, value)
"""
    assert project.python("-i", "s.py", stdin=program).splitlines() == ["value 2", "value 1"]


def test_notebook_cells_have_source(project: Any, tmp_path: Path) -> None:
    """As IPython runs a cell: compiled under an invented name, the text in linecache."""
    program = """
import linecache, sys, types
main = types.ModuleType("__main__")
main.__dict__["get_ipython"] = lambda: None
sys.modules["__main__"] = main
def cell(number, text):
    name = f"/tmp/ipykernel_{number}77/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), main.__dict__)
cell(1, "PASSWORD_HINT = 'elsewhere'\\ndef helper(x):\\n    return 1 / x  # helper's line\\n")
cell(2, "def f(x):\\n    try:\\n        import absent_one\\n    except ImportError: pass\\n"
        "    return helper(x)\\nprint('cell 2')\\n")
from clustrix_containers.capture.callables import capture
bundle = capture(main.f)
for file in bundle.files:
    print(file.path)
    print(file.content.decode())
assert b"ipykernel" not in bundle.function and b"code/.clustrix/cells/1.py" in bundle.function
print(bundle.entry.kind, [i.module for i in bundle.imports])
"""
    script = tmp_path / "kernel.py"
    script.write_text(program)
    out = project.python(str(script))
    assert "# helper's line" in out
    assert "def f(x)" in out
    assert "elsewhere" not in out
    assert "print('cell 2')" not in out.replace("cell 2\n", "", 1)
    assert out.splitlines()[-1] == "value []"


def test_unguarded_script_does_not_submit_when_results_load(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(contract.INSIDE, raising=False)
    source = b"import os\nINSIDE = os.environ.get('CLUSTRIX_INSIDE')\n"
    module = program.load_script(source, contract.MAIN + ".t", str(project.root / "s.py"))
    try:
        assert module.INSIDE == "1"
        assert contract.INSIDE not in os.environ
        bundle = capture(_find_int(module))
        assert bundle.entry.kind == "module"
    finally:
        del sys.modules[contract.MAIN + ".t"]


def _find_int(_module: Any) -> Any:
    return int


def test_script_loaded_by_the_command_line(project: Any, tmp_path: Path) -> None:
    """``cxc run FILE.py:FUNC`` loads the file under MAIN; its functions are the script's."""
    path = project.write({"s.py": "class T: pass\ndef f(t): return type(t) is T, T()\n"}) / "s.py"
    module = program.load_script(path.read_bytes(), contract.MAIN, str(path))
    try:
        bundle = capture(module.f)
        assert (bundle.entry.kind, bundle.main) == ("script", path)
        same, value = container.run(bundle, tmp_path, (module.T(),))
        assert same
        assert type(value) is module.T
    finally:
        del sys.modules[contract.MAIN]


def test_failed_script_leaves_no_module(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        program.load_script(b"1 / 0", contract.MAIN + ".bad", str(tmp_path / "s.py"))
    assert contract.MAIN + ".bad" not in sys.modules


_DIGEST = """
import hashlib, sys
from clustrix_containers.capture.callables import capture
from clustrix_containers.capture.bundle import bundle_files
from clustrix_containers.capture.pickling import dump_call
def digest(function, *args):
    total = hashlib.sha256()
    for path, content in bundle_files(capture(function)):
        data = content if isinstance(content, bytes) else content.read_bytes()
        total.update(path.encode() + b"\\0" + data)
    total.update(dump_call(args, {})[0])
    return total.hexdigest()
"""

_DETERMINED = """
import dataclasses, functools, typing
import determined as d
import shared
V = typing.TypeVar("V")
def build():
    words = {"alpha", "beta", "gamma", "delta"}
    frozen = frozenset({"x", "y", (1, "z")})
    class Local:
        '''Documented.'''
        kinds = {"p", "q", "r"}
        def has(self, w): return w in {"one", "two", "three"}
    @dataclasses.dataclass
    class Data:
        a: int = 1
        b: list[V] = dataclasses.field(default_factory=list)
    @functools.lru_cache(maxsize=3)
    def f(x, marks=("a", "b", "determined text")):
        import json
        determined = "determined text"
        return Local().has(x), words, frozen, Data(), shared.helper(x), determined
    return f
if __name__ == "__main__":
    print(d.digest(build(), {"s1", "s2", "s3"}, frozenset("abc"), lambda x: x in {"k", "l"}))
"""


def test_bytes_do_not_depend_on_the_process(project: Any, tmp_path: Path) -> None:
    files = {
        "determined.py": _DIGEST,
        "prog.py": _DETERMINED,
        "pkg/__init__.py": "",
        "pkg/prog.py": _DETERMINED.replace(
            "if __name__", "def go():\n    return d.digest(build())\nif __name__"
        ),
        "shared.py": "def helper(x): return x",
    }
    project.write(files)
    copy = tmp_path / "elsewhere"
    for path, content in files.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(content)
    digests = {
        project.python(str(root / "prog.py"), cwd=cwd, PYTHONHASHSEED=seed)
        for root, cwd, seed in (
            (project.root, tmp_path, "1"),
            (project.root, Path("/"), "2"),
            (copy, copy, "random"),
        )
    }
    assert len(digests) == 1
    # With and without a .pyc, imported and not run.
    one_liner = (
        f"import sys; sys.path.insert(0, {str(copy)!r}); import pkg.prog as p; print(p.go())"
    )
    digests = {
        project.python("-c", one_liner, PYTHONHASHSEED=seed, PYTHONDONTWRITEBYTECODE=no)
        for seed, no in (("1", ""), ("2", ""), ("3", ""))
    }
    assert list((copy / "pkg/__pycache__").glob("prog.*.pyc"))
    assert len(digests) == 1
