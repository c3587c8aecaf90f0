"""Messages and streams from containers, which may say anything."""

from __future__ import annotations

import base64
import json
import resource
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.errors import ResultError
from clustrix_containers.results.delivery import (
    Inline,
    Stored,
    StreamEnded,
    Undelivered,
    put,
    read,
    receive,
)
from clustrix_containers.results.directory import collect
from clustrix_containers.results.outcome import Expected, load
from tests.bare_worker import KEY, RUN, Bare, unpickle, write_code


def packed(data: bytes, level: int = 9) -> str:
    return "CXM1" + base64.b85encode(zlib.compress(data, level)).decode()


def stored(**fields: Any) -> str:
    name = "3.0." + "0" * 16
    return "CXM2" + json.dumps({"store": "s3", "mark": f"{name}.mark", "result": None, **fields})


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    bare = Bare(tmp_path / "pod")
    write_code(bare.root, {"m.py": "import os\ndef f(): return os.urandom(5000)"})
    assert bare.run()[0] == 0
    (tmp_path / "mine").mkdir()
    return bare


def files(bare: Bare) -> tuple[bytes, bytes]:
    """The mark and the result that the worker wrote."""
    results = bare.root / "results"
    found = next(results.glob("*.result")) if (results / "0.0.mark").exists() else None
    assert found is not None
    return (results / "0.0.mark").read_bytes(), found.read_bytes()


def expected(tmp_path: Path, element: int = 0) -> Expected:
    return Expected(tmp_path / "mine", RUN, element, 0, KEY)


def mine(tmp_path: Path) -> list[str]:
    files = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.name != ".arriving")


def test_each_kind_of_message() -> None:
    assert read(packed(b"\x02\0\0\0{}")) == Inline(b"{}", None)
    assert read(packed(b"\x02\0\0\0{}result") + "\n") == Inline(b"{}", b"result")
    digest = "sha256:" + "a" * 64
    name = "3.0.0123456789abcdef"
    message = stored(
        store="registry", mark=f"{name}.mark", result=f"{name}.result", manifest=digest
    )
    assert read(message) == Stored("registry", f"{name}.mark", f"{name}.result", digest)
    assert read(stored(store="volume", mark=f"{name}.mark")) == Stored(
        "volume", f"{name}.mark", None
    )
    assert read("CXM3the bucket \x1b[2Jis gone") == Undelivered("the bucket  [2Jis gone")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "CXM",
        "CXM4x",
        "Traceback (most recent call last):\n\x1b[2J",
        "CXM1",
        "CXM1 \udcff\0",
        "CXM1" + base64.b85encode(b"no zlib").decode(),
        packed(b""),
        packed(b"\xff\xff\xff\xff{}"),
        packed(b"\x02\0\0\0{}result")[:-5],
        "CXM1" + base64.b85encode(zlib.compress(b"\x02\0\0\0{}") + b"more").decode(),
        packed(b"\x02\0\0\0{}" + bytes(64 * 4096)),
        "CXM2",
        "CXM2[]",
        "CXM2" + "[" * 100_000,
        stored(store="pigeon"),
        stored(store=["s3"]),
        stored(mark="../../etc/passwd"),
        stored(mark="3.0.mark"),
        stored(mark=None),
        stored(mark="3.0.0123456789abcdef.mark\n"),
        stored(result="/3.0.0123456789abcdef.result"),
        stored(result=7),
        stored(store="registry"),
        stored(store="registry", manifest="sha256:../x"),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_no_message_of_ours(message: str) -> None:
    with pytest.raises(ResultError) as caught:
        read(message)
    assert "\x1b" not in str(caught.value)


def test_a_message_that_swells_takes_no_memory() -> None:
    squeezed = zlib.compressobj(9)
    data = b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(1024)) + squeezed.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ResultError, match="too large"):
        read("CXM1" + base64.b85encode(data).decode())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_what_was_put_is_collected(bare: Bare, tmp_path: Path) -> None:
    mark, result = files(bare)
    for _ in range(2):
        put(expected(tmp_path), Inline(mark, result))
        outcome = collect(Expected(tmp_path / "mine", RUN, 0, 0, KEY))
        assert outcome is not None
        assert load(outcome, unpickle=unpickle) == bare.value()
        assert len(mine(tmp_path)) == 2


def test_what_is_not_the_runs_is_not_put(bare: Bare, tmp_path: Path) -> None:
    mark, result = files(bare)
    for changed in (b"{}", mark.replace(b'"ok"', b'"died"'), b"", b"\xff" * 100):
        with pytest.raises(ResultError):
            put(expected(tmp_path), Inline(changed, result))
    for other in (None, b"", result + b"x", result[:-1], b"x" * len(result)):
        with pytest.raises(ResultError, match="is not what its worker wrote"):
            put(expected(tmp_path), Inline(mark, other))
    with pytest.raises(ResultError):
        put(expected(tmp_path, 1), Inline(mark, result))
    assert mine(tmp_path) == []


def test_the_first_valid_mark_stays_and_an_invalid_one_does_not(bare: Bare, tmp_path: Path) -> None:
    first = files(bare)
    for path in (bare.root / "results").iterdir():
        path.unlink()
    assert bare.run()[0] == 0
    second = files(bare)
    place = tmp_path / "mine/results/0.0.mark"
    place.parent.mkdir()
    place.write_text("{}")
    put(expected(tmp_path), Inline(*first))
    assert place.read_bytes() == first[0]
    put(expected(tmp_path), Inline(*second))
    assert place.read_bytes() == first[0]
    assert len(mine(tmp_path)) == 2
    # Its file was lost on this machine: it can be had again.
    next((tmp_path / "mine/results").glob("*.result")).unlink()
    put(expected(tmp_path), Inline(*first))
    assert collect(Expected(tmp_path / "mine", RUN, 0, 0, KEY)) is not None


def test_many_at_once_put_the_same(bare: Bare, tmp_path: Path) -> None:
    mark, result = files(bare)
    start, failures = threading.Barrier(8), list[BaseException]()

    def run() -> None:
        start.wait()
        try:
            for _ in range(20):
                put(expected(tmp_path), Inline(mark, result))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(mine(tmp_path)) == 2


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
def test_a_stream_in_pieces_of_any_size(bare: Bare, tmp_path: Path, piece: int) -> None:
    mark, result = files(bare)
    whole = len(mark).to_bytes(4, "little") + mark + result
    pieces = [whole[at : at + piece] for at in range(0, len(whole), piece)]

    def stream() -> Any:
        for part in pieces:
            yield b""
            yield part
        pytest.fail("more was asked for than the outcome has")

    receive(stream(), expected(tmp_path))
    # What is here already is read, and thrown away.
    receive(stream(), expected(tmp_path))
    assert collect(Expected(tmp_path / "mine", RUN, 0, 0, KEY)) is not None


def test_a_stream_that_breaks_off_leaves_nothing(bare: Bare, tmp_path: Path) -> None:
    mark, result = files(bare)
    whole = len(mark).to_bytes(4, "little") + mark + result
    for length in (0, 3, 4, 100, len(mark) + 4, len(mark) + 5, len(whole) - 1):
        with pytest.raises(StreamEnded, match="broke off"):
            receive([whole[:length]], expected(tmp_path))
    assert mine(tmp_path) == []


def test_a_stream_of_something_else(bare: Bare, tmp_path: Path) -> None:
    mark, result = files(bare)
    whole = len(mark).to_bytes(4, "little") + mark + result
    for stream in (b"\xff" * 1000, b"\x02\0\0\0{}" * 9, whole + b"x", whole[:-1] + b"x"):
        with pytest.raises(ResultError) as caught:
            receive([stream], expected(tmp_path))
        assert not isinstance(caught.value, StreamEnded)
    assert mine(tmp_path) == []
