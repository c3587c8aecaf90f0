"""Marks and results: what is believed, and what comes of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.errors import (
    MemoryLimitExceeded,
    ResultError,
    ResultLost,
    TimeLimitExceeded,
    WorkerDied,
)
from clustrix_containers.results.directory import collect
from clustrix_containers.results.outcome import Expected, load, open_result, without_mark
from tests.bare_worker import KEY, RUN, Bare, unpickle, write_calls, write_code


@pytest.fixture
def done(tmp_path: Path) -> Bare:
    """A run of three elements, of which 0 and 2 ended."""
    bare = Bare(tmp_path / "run")
    write_code(bare.root, {"m.py": "def f(x): return [x, b'y' * 100]"})
    write_calls(bare.root, [((number,), {}) for number in range(3)])
    assert bare.run(0)[0] == bare.run(2)[0] == 0
    return bare


def change(bare: Bare, **fields: Any) -> None:
    path = bare.root / "results/0.0.mark"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_no_mark_is_no_outcome(done: Bare) -> None:
    assert collect(Expected(done.root, RUN, 1, 0, KEY)) is None


def test_collecting_again_gives_the_same_from_the_clients_own_directory(done: Bare) -> None:
    first = done.outcome(0)
    assert first == done.outcome(0)
    assert first.value
    assert first.value.parent == done.root / "outcomes"
    assert (done.root / "outcomes").stat().st_mode & 0o777 == 0o700
    assert done.value(0) == [0, b"y" * 100]


@pytest.mark.parametrize(
    "fields",
    [
        {"mac": "0" * 64},
        {"mac": "ü"},
        {"mac": None},
        {"outcome": "error"},
        {"sha256": "0" * 64},
        {"size": 1},
        {"message": "another"},
        {"traceback": "another"},
        {"element": 2},
        {"run": "another"},
        {"attempt": 7},
    ],
    ids=str,
)
def test_a_changed_mark_is_not_believed(done: Bare, fields: dict[str, Any]) -> None:
    change(done, **fields)
    with pytest.raises(ResultError, match="was not written by this run's worker"):
        done.outcome(0)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"null", b"\xff", b'{"run": "run-1"}', b"9" * 9999]
)
def test_what_is_no_mark_is_said(done: Bare, data: bytes) -> None:
    (done.root / "results/0.0.mark").write_bytes(data)
    with pytest.raises(ResultError, match="the completion mark of element 0 cannot be read"):
        done.outcome(0)


def test_another_key_is_not_believed(done: Bare) -> None:
    with pytest.raises(ResultError, match="was not written by this run's worker"):
        collect(Expected(done.root, RUN, 0, 0, b"another"))


def test_a_mark_of_another_element_is_not_believed(done: Bare) -> None:
    shutil.copy(done.root / "results/0.0.mark", done.root / "results/1.0.mark")
    with pytest.raises(ResultError, match="was not written by this run's worker"):
        done.outcome(1)


def test_a_mark_that_is_a_link_is_not_followed(done: Bare) -> None:
    (done.root / "results/0.0.mark").rename(done.root / "elsewhere")
    (done.root / "results/0.0.mark").symlink_to(done.root / "elsewhere")
    with pytest.raises(ResultError, match="cannot be read"):
        done.outcome(0)


def result(bare: Bare) -> Path:
    [path] = (bare.root / "results").glob("0.0.*.result")
    return path


def cut(path: Path) -> None:
    os.truncate(path, 100)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize("spoil", [cut, flip, link])
def test_a_changed_result_is_not_loaded(done: Bare, spoil: Callable[[Path], None]) -> None:
    spoil(result(done))
    with pytest.raises(ResultError, match=r"not what its worker wrote|not a regular file"):
        done.outcome(0)


def test_a_lost_result_is_said(done: Bare) -> None:
    result(done).unlink()
    with pytest.raises(ResultLost, match="the result of element 0 no longer exists"):
        done.outcome(0)


def test_a_result_that_cannot_be_loaded_here_is_said(done: Bare) -> None:
    def refuse(data: Any, buffers: Any) -> object:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    with pytest.raises(ResultError, match="needs the module 'x', which is not installed here"):
        load(done.outcome(0), unpickle=refuse)


@pytest.mark.parametrize(
    "data", [b"", b"CXR1", b"NOPE" + bytes(60), b"CXR1" + b"\xff" * 60, b"CXR1" + bytes(5)]
)
def test_malformed_results_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(ResultError):
        open_result(tmp_path / "r")


def test_what_the_cluster_knows_better_counts(tmp_path: Path) -> None:
    bare = Bare(tmp_path / "run")
    write_code(bare.root, {"m.py": "import os\ndef f(): os.kill(os.getpid(), 9)"})
    bare.run()
    status = Status(State.FAILED, Cause.MEMORY_LIMIT, 137, "it used more than 64 MiB")
    with pytest.raises(MemoryLimitExceeded, match="it used more than 64 MiB"):
        load(bare.outcome(), unpickle=unpickle, status=status)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        load(bare.outcome(), unpickle=unpickle, status=Status(State.FAILED))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status(State.SUCCEEDED), ResultLost),
        (Status(State.FAILED, Cause.MEMORY_LIMIT), MemoryLimitExceeded),
        (Status(State.FAILED, Cause.TIME_LIMIT), TimeLimitExceeded),
        (Status(State.FAILED, Cause.DIED), WorkerDied),
        (Status(State.CANCELLED), WorkerDied),
    ],
)
def test_an_end_without_a_mark_is_told(status: Status, kind: type[Exception]) -> None:
    assert type(without_mark(status, run=RUN, element=3)) is kind
