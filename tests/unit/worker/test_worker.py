"""The worker as a process, under every Python that is here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from clustrix_containers.errors import (
    JobError,
    RemoteTraceback,
    ResultError,
    TimeLimitExceeded,
    WorkerDied,
)
from tests.bare_worker import (
    KEY,
    RUN,
    Bare,
    interpreters,
    unpickle,
    write_calls,
    write_code,
    write_lib,
)


@pytest.fixture(params=interpreters())
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Bare:
    return Bare(tmp_path / "a 'hostile\" \n näme", request.param)


@pytest.fixture
def here(tmp_path: Path) -> Bare:
    return Bare(tmp_path / "root")


@pytest.fixture
def importable(here: Bare, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client can import the code's modules too."""
    monkeypatch.syspath_prepend(str(here.root / "code"))
    yield
    for name in ("m", "__clustrix_main__"):
        sys.modules.pop(name, None)


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


# --- values -------------------------------------------------------------------------------


def test_a_value_comes_back(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "def f(x, *, y): return {'sum': x + y, 'b': b'z' * 100000}"})
    write_calls(bare.root, [((1,), {"y": 2}), ((10,), {"y": 20})])
    assert bare.run(element=1) == (0, "", "")
    assert bare.value(1) == {"sum": 30, "b": b"z" * 100000}
    mark = bare.outcome(1).mark
    assert mark.max_rss > 1 << 20
    assert mark.started <= mark.ended <= time.time()


def test_without_a_call_layer_the_function_gets_no_arguments(bare: Bare) -> None:
    write_code(
        bare.root, {"m.py": "class A:\n @staticmethod\n def g(): return 'g'"}, qualname="A.g"
    )
    assert bare.run()[0] == 0
    assert bare.value() == "g"


def test_the_index_of_kubernetes_counts_where_ours_is_absent(here: Bare) -> None:
    write_code(here.root, {"m.py": "def f(x): return x"})
    write_calls(here.root, [(("a",), {}), (("b",), {})])
    assert here.run(CLUSTRIX_ELEMENT="", JOB_COMPLETION_INDEX="1")[0] == 0
    assert here.value(1) == "b"


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n    yield 1\n    yield 2",
        "async def f():\n    import asyncio\n    await asyncio.sleep(0)\n    return [1, 2]",
        "async def f():\n    yield 1\n    yield 2",
    ],
    ids=["generator", "coroutine", "async generator"],
)
def test_lazy_results_are_settled(bare: Bare, body: str) -> None:
    write_code(bare.root, {"m.py": body})
    assert bare.run()[0] == 0
    assert bare.value() == [1, 2]


SCRIPT = """
import dataclasses, sys
@dataclasses.dataclass
class Point:
    x: int
def f(x):
    assert sys.modules[__name__].Point is Point
    return Point(x), __name__, __file__
if __name__ == "__main__":
    raise SystemExit("the guard ran")
"""


def test_a_script_travels_under_its_own_name(bare: Bare) -> None:
    write_code(bare.root, {"sub/x y.py": SCRIPT}, kind="script", script="sub/x y.py")
    write_calls(bare.root, [((3,), {})])
    assert bare.run() == (0, "", "")
    sys.modules["__clustrix_main__"] = type(sys)("__clustrix_main__")
    try:
        exec(SCRIPT, vars(sys.modules["__clustrix_main__"]))
        point, name, file = bare.value()
    finally:
        del sys.modules["__clustrix_main__"]
    assert (point.x, name, file) == (3, "__clustrix_main__", str(bare.root / "code/sub/x y.py"))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_finds_the_scripts_functions(bare: Bare, method: str) -> None:
    script = (
        "import multiprocessing\n"
        "def square(x): return x * x\n"
        "def f():\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "        return pool.map(square, range(4))\n"
    )
    write_code(bare.root, {"x.py": script}, kind="script", script="x.py")
    assert bare.run()[0] == 0
    assert bare.value() == [0, 1, 4, 9]


def test_a_function_by_value(here: Bare) -> None:
    offset = 7

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    def function(x: int) -> Any:
        return Local(x + offset)

    data = cloudpickle.dumps(function)
    write_code(here.root, {".clustrix/function.pkl": data}, kind="value", qualname="function")
    write_calls(here.root, [((1,), {})])
    write_lib(here.root)
    here.env["PYTHONPATH"] = str(Path(__file__).parents[3])
    assert here.run() == (0, "", "")
    assert here.value().x == 8


def test_our_function_object_is_unwrapped(here: Bare) -> None:
    code = (
        "class Wrapped:\n"
        "    def __call__(self): raise AssertionError('the wrapper ran')\n"
        "f = Wrapped()\n"
        "f.__clustrix_function__ = lambda: 'plain'\n"
    )
    write_code(here.root, {"m.py": code})
    assert here.run()[0] == 0
    assert here.value() == "plain"


def test_paths_and_environment(here: Bare) -> None:
    code = "import os, sys\ndef f(): return sys.path, dict(os.environ)"
    write_code(here.root, {"m.py": code})
    assert here.run(CLUSTRIX_CPUS="2.5", MKL_NUM_THREADS="7")[0] == 0
    path, env = here.value()
    assert path[0] == str(here.root / "code")
    assert path[-1] == str(here.root / "lib")
    assert str(Path(__file__).parents[3] / "clustrix_containers") not in path
    assert env["CLUSTRIX_INSIDE"] == "1"
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2", "7")
    assert KEY.decode() not in "".join(env.values())


def test_large_buffers_are_neither_copied_here_nor_there(here: Bare) -> None:
    # 256 MiB: the function's own peak is that, and a copy anywhere would double it.
    code = "import numpy\ndef f(n): return numpy.ones(n, dtype='u1')"
    write_code(here.root, {"m.py": code})
    write_calls(here.root, [((256 << 20,), {})])
    assert here.run() == (0, "", "")
    assert here.outcome().mark.max_rss < 400 << 20
    array = here.value()
    array[5] = 3
    assert (array.sum(), array.nbytes) == ((256 << 20) + 2, 256 << 20)


def test_large_bytes_are_not_copied_in_the_worker(here: Bare) -> None:
    write_code(here.root, {"m.py": "def f(n): return [b'x' * n]"})
    write_calls(here.root, [((256 << 20,), {})])
    assert here.run() == (0, "", "")
    assert here.outcome().mark.max_rss < 400 << 20
    assert len(here.value()[0]) == 256 << 20


def test_non_contiguous_and_small_arrays(here: Bare) -> None:
    code = "import numpy\ndef f():\n a = numpy.arange(1e5).reshape(100, 1000)\n return a, a.T, a[:, ::3], a[0, :3]"
    write_code(here.root, {"m.py": code})
    assert here.run()[0] == 0
    a, transposed, stepped, small = here.value()
    assert (transposed == a.T).all()
    assert (a[:, ::3] == stepped).all()
    assert list(small) == [0, 1, 2]


# --- exceptions ---------------------------------------------------------------------------


def test_an_exception_comes_back_with_its_type_and_the_users_lines(bare: Bare) -> None:
    code = "def g(x):\n    return 1 / x\n\ndef f():\n    try:\n        g(0)\n    except ZeroDivisionError as e:\n        raise KeyError('kö\\ny') from e\n"
    write_code(bare.root, {"m.py": code})
    code, out, err = bare.run()
    assert (code, out, err) == (1, "", "")
    with pytest.raises(KeyError, match="k") as caught:
        bare.value()
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert "raise KeyError('kö\\ny') from e" in remote.text
    assert "return 1 / x" in remote.text
    assert "worker.py" not in remote.text
    assert "importlib" not in remote.text
    assert isinstance(remote.__context__, ZeroDivisionError)
    assert bare.outcome().mark.type == "KeyError"


@pytest.mark.parametrize(
    ("raises", "kind"),
    [("import sys; sys.exit(3)", SystemExit), ("raise KeyboardInterrupt", KeyboardInterrupt)],
)
def test_exits_are_exceptions_of_the_user_too(
    bare: Bare, raises: str, kind: type[BaseException]
) -> None:
    write_code(bare.root, {"m.py": f"def f():\n    {raises}"})
    assert bare.run()[0] == 1
    with pytest.raises(kind) as caught:
        bare.value()
    assert getattr(caught.value, "code", 3) == 3


def test_a_coroutines_traceback_has_no_frames_of_asyncio(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "async def f():\n    raise ValueError('in there')"})
    assert bare.run()[0] == 1
    assert "asyncio" not in bare.outcome().mark.traceback
    assert "raise ValueError('in there')" in bare.outcome().mark.traceback


@pytest.mark.parametrize(
    "definition",
    [
        "class E(Exception):\n    def __init__(self, a, b): super().__init__('about %s' % a)",
        "class E(Exception):\n    def __init__(self, *a): self.f = __import__('threading').Lock()\n    def __str__(self): return 'about 1'",
    ],
    ids=["does not load", "does not pickle"],
)
def test_an_exception_that_cannot_travel_is_told_in_words(bare: Bare, definition: str) -> None:
    write_code(bare.root, {"m.py": f"{definition}\ndef f(): raise E(1, 2)"})
    assert bare.run()[0] == 1
    assert bare.outcome().value is None
    with pytest.raises(JobError, match=r"raised m\.E: about 1") as caught:
        bare.value()
    assert caught.value.type == "m.E"
    assert "raise E(1, 2)" in str(caught.value.__cause__)


@pytest.mark.usefixtures("importable")
def test_notes_and_groups_travel(here: Bare) -> None:
    code = "def f():\n    e = ValueError(1)\n    e.add_note('a note')\n    raise ExceptionGroup('two', [e, KeyError(2)])"
    if sys.version_info < (3, 11):
        code = "def f():\n    e = ValueError(1)\n    e.exceptions = [ValueError(1)]\n    e.exceptions[0].__notes__ = ['a note']\n    raise e"
    write_code(here.root, {"m.py": code})
    assert here.run()[0] == 1
    with pytest.raises(Exception) as caught:
        here.value()
    assert caught.value.exceptions[0].__notes__ == ["a note"]  # type: ignore[attr-defined]


def test_a_missing_module_is_named(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "import nosuchmodule\ndef f(): pass"})
    assert bare.run()[0] == 1
    assert "nosuchmodule" in bare.outcome().mark.message
    with pytest.raises(ModuleNotFoundError) as caught:
        bare.value()
    assert caught.value.name == "nosuchmodule"


def test_a_result_that_cannot_be_pickled_is_explained(bare: Bare) -> None:
    code = "import threading\nclass A: pass\ndef f():\n    a = A(); a.lock = threading.Lock()\n    return {'k': [1, a]}"
    write_code(bare.root, {"m.py": code})
    assert bare.run()[0] == 1
    with pytest.raises(ResultError, match=r"result\['k'\]\[1\]\.lock is a _thread\.lock") as caught:
        bare.value()
    assert caught.value.type == "dict"


def test_endless_recursion_is_an_ordinary_error(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "def f(): return f()"})
    assert bare.run()[0] == 1
    with pytest.raises(RecursionError):
        bare.value()


# --- ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL, 137),
        ("import ctypes; ctypes.string_at(0)", signal.SIGSEGV, 139),
        ("import os; os.abort()", signal.SIGABRT, 134),
        ("import os; os._exit(7)", None, 7),
        ("import os; os._exit(0)", None, 1),
    ],
)
def test_a_process_that_dies_leaves_a_mark(
    bare: Bare, how: str, number: int | None, code: int
) -> None:
    write_code(bare.root, {"m.py": f"def f():\n    print('before')\n    {how}"})
    assert bare.run()[:2] == (code, "before\n")
    mark = bare.outcome().mark
    assert (mark.outcome, mark.signal) == ("died", number)
    with pytest.raises(WorkerDied):
        bare.value()


def test_the_time_limit_ends_the_whole_tree(bare: Bare) -> None:
    code = (
        "import subprocess, sys, signal, time\n"
        "def f(path):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    p = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    open(path, 'w').write(str(p.pid))\n"
        "    time.sleep(1000)\n"
    )
    write_code(bare.root, {"m.py": code})
    write_calls(bare.root, [((str(bare.root / "pid"),), {})])
    before = time.monotonic()
    code = bare.run(CLUSTRIX_TIMEOUT="0.8", CLUSTRIX_GRACE="0.2")[0]
    assert code == 124
    assert 1.0 <= time.monotonic() - before < 60
    grandchild = int((bare.root / "pid").read_text())
    wait_for(lambda: not alive(grandchild))
    with pytest.raises(TimeLimitExceeded, match=r"time limit of 0\.8 s"):
        bare.value()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_from_outside_is_forwarded_and_leaves_no_mark(bare: Bare, number: int) -> None:
    code = "import time\ndef f():\n    print('on', flush=True)\n    time.sleep(100)"
    write_code(bare.root, {"m.py": code})
    with bare.start() as process:
        assert process.stdout
        assert process.stdout.readline() == "on\n"
        process.send_signal(number)
        process.communicate(timeout=30)
    marks = list((bare.root / "results").glob("*.mark"))
    if number == signal.SIGTERM:
        assert (process.returncode, marks) == (143, [])
    else:
        # The user's code saw a KeyboardInterrupt: that is an outcome.
        assert (process.returncode, bare.outcome().mark.type) == (1, "KeyboardInterrupt")


def test_a_handler_for_sigterm_can_still_return_a_value(here: Bare) -> None:
    code = (
        "import signal, time\n"
        "class Stop(Exception): pass\n"
        "def stop(*_): raise Stop\n"
        "def f():\n"
        "    signal.signal(signal.SIGTERM, stop)\n"
        "    try:\n"
        "        print('on'); time.sleep(100)\n"
        "    except Stop: return 'checkpoint'\n"
    )
    write_code(here.root, {"m.py": code})
    with here.start() as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert here.value() == "checkpoint"


def test_the_first_valid_mark_wins(here: Bare) -> None:
    write_code(here.root, {"m.py": "import time\ndef f(): return time.time_ns()"})
    assert here.run()[0] == 0
    first = here.outcome().mark
    assert here.run()[0] == 0
    assert here.outcome().mark == first
    assert load_again(here) == here.value()
    (here.root / "results/0.0.mark").write_text('{"mac": "forged"}')
    assert here.run()[0] == 0
    assert here.outcome().mark != first


def load_again(bare: Bare) -> Any:
    from clustrix_containers.results.outcome import load

    return load(bare.outcome(), unpickle=unpickle)


def test_a_copy_of_the_process_that_comes_back_says_nothing(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "import os\ndef f(): return os.fork() > 0"})
    assert bare.run()[0] == 0
    assert bare.value() is True


def test_a_process_left_behind_is_ended(bare: Bare) -> None:
    code = "import subprocess\ndef f(): return subprocess.Popen(['sleep', '1000']).pid"
    write_code(bare.root, {"m.py": code})
    assert bare.run()[0] == 0
    # The kernel ends a killed process in its own time.
    left = bare.value()
    wait_for(lambda: not alive(left))


# --- without a run, and with a wrong image -------------------------------------------------


def plain(bare: Bare) -> dict[str, str]:
    (bare.root / "run/key").unlink()
    return {"CLUSTRIX_RUN": ""}


def test_a_plain_run_prints_the_result(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "def f(): return {'a': 'ü'}"})
    assert bare.run(**plain(bare)) == (0, "{'a': 'ü'}\n", "")
    assert list((bare.root / "results").iterdir()) == []


def test_a_plain_run_prints_the_traceback(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "def f(): raise ValueError('no')"})
    code, out, err = bare.run(**plain(bare))
    assert (code, out) == (1, "")
    assert err.endswith("ValueError: no\n")
    assert err.startswith("Traceback")


def break_entry(bare: Bare) -> None:
    (bare.root / "code/.clustrix/entry.json").unlink()


def break_name(bare: Bare) -> None:
    write_code(bare.root, {"m.py": "def g(): pass"})


def break_call(bare: Bare) -> None:
    write_calls(bare.root, [])


def break_data(bare: Bare) -> None:
    write_calls(bare.root, [((1,), {})])
    (bare.root / "call/data").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (break_entry, "the image's entry cannot be read"),
        (break_name, "'m' in the image's code has no 'f'"),
        (break_call, "the call has 0 elements, and no element 0"),
        (break_data, "data is truncated within element 0"),
    ],
)
def test_a_wrong_image_is_said(bare: Bare, spoil: Callable[[Bare], None], says: str) -> None:
    write_code(bare.root, {"m.py": "def f(*a): pass"})
    spoil(bare)
    code, _, err = bare.run()
    assert code == 125
    assert says in err
    assert says in bare.outcome().mark.message


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"CLUSTRIX_ELEMENT": "x"}, "CLUSTRIX_ELEMENT is 'x'"),
        ({"CLUSTRIX_TIMEOUT": "soon"}, "CLUSTRIX_TIMEOUT is 'soon'"),
        ({"CLUSTRIX_KEY_FILE": "/nonexistent"}, "the run's key cannot be read"),
    ],
)
def test_a_wrong_environment_is_said(here: Bare, env: dict[str, str], says: str) -> None:
    write_code(here.root, {"m.py": "def f(): pass"})
    code, _, err = here.run(**env)
    assert code == 125
    assert says in err


def test_a_full_disk_is_said_and_leaves_nothing(here: Bare) -> None:
    write_code(
        here.root,
        {
            "m.py": "import resource, signal\ndef f():\n signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16,) * 2)\n return b'x' * (1 << 20)"
        },
    )
    assert here.run()[0] == 125
    with pytest.raises(WorkerDied, match="the result cannot be written"):
        here.value()
    assert [path.name for path in (here.root / "results").iterdir()] == ["0.0.mark"]


def test_output_is_utf8_and_unbuffered_even_in_c(bare: Bare) -> None:
    code = "import os\ndef f():\n    print('ü \\udc80', end='')\n    os._exit(3)"
    write_code(bare.root, {"m.py": code})
    assert bare.run(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")[1] == "ü \\udc80"


def test_the_parent_is_small(here: Bare) -> None:
    write_code(here.root, {"m.py": "import time, numpy\ndef f():\n print('on')\n time.sleep(100)"})
    with here.start() as process:
        assert process.stdout
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        private = sum(int(line.split()[1]) for line in status.splitlines() if "Private_" in line)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert private < 6 << 10


def test_the_mark_is_of_this_run(here: Bare) -> None:
    write_code(here.root, {"m.py": "def f(): pass"})
    assert here.run()[0] == 0
    assert here.outcome().mark.run == RUN
