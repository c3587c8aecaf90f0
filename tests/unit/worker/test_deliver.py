"""An outcome leaves its container: the worker as a process, under every Python that is here."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.errors import JobError
from clustrix_containers.results.delivery import Inline, Stored, Undelivered
from clustrix_containers.worker import contract
from tests.bare_worker import interpreters
from tests.clusters.daemon import wait_until
from tests.delivered import DELIVER_SCRIPT, Delivering
from tests.front import Front, answer, answer_early, hang_up, say_nothing

SECRET = "s3cr3t-of-this-run"
LARGE = "import os\ndef f(): return os.urandom(100_000)"
NAME = "a 'hostile\" \n näme"
# Numbers do not shrink, and no two lines are the same.
LONG_TRACE = """
import hashlib
def f():
    text = ''.join(hashlib.sha256(str(n).encode()).hexdigest() + chr(10) for n in range(3200))
    class Loud(ValueError):
        def __str__(self): return 'the reason'
        def __reduce__(self): return (ValueError, ('the reason',))
    error = ValueError('the reason: ' + text)
    raise error
"""


@pytest.fixture(params=interpreters())
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


# --- inline -------------------------------------------------------------------------------


def test_a_small_value_travels_in_the_message(tmp_path: Path, python: str) -> None:
    pod = Delivering.of(tmp_path / NAME, python, "def f(): return {'a': [1, 2.5, 'ü']}")
    assert pod.bare.run() == (0, "", "")
    assert isinstance(pod.parsed_message(), Inline)
    pod.put()
    assert pod.value() == {"a": [1, 2.5, "ü"]}


def test_an_element_that_was_given_up_does_not_begin(tmp_path: Path, python: str) -> None:
    pod = Delivering.of(tmp_path / NAME, python, "def f(): return 1")
    run = pod.bare.root / "run"
    (run / "cancelled-1").touch()
    assert pod.bare.run()[0] == 0
    assert isinstance(pod.parsed_message(), Inline)
    (run / "cancelled-0").touch()
    pod.message_file.unlink()
    marks = sorted((pod.bare.root / "results").iterdir())
    assert pod.bare.run() == (0, "", "clustrix worker: element 0 was cancelled\n")
    assert pod.message == contract.CANCELLED_MESSAGE
    assert sorted((pod.bare.root / "results").iterdir()) == marks


def test_what_shrinks_enough_travels_in_the_message(tmp_path: Path) -> None:
    pod = Delivering.of(tmp_path, sys.executable, "def f(): return b'z' * 200_000")
    assert pod.bare.run() == (0, "", "")
    pod.put()
    assert pod.value() == b"z" * 200_000


def test_the_limit_is_kept_to_the_byte(tmp_path: Path) -> None:
    pod = Delivering.of(tmp_path, sys.executable, "def f(): return 1")
    assert pod.bare.run()[0] == 0
    size = len(pod.message)
    pod.configured(None, limit=size)
    assert pod.bare.run()[0] == 0
    pod.configured(None, limit=size - 1)
    code, _, err = pod.bare.run()
    assert code == 125
    assert "no store" in err
    assert isinstance(pod.parsed_message(), Undelivered)


def test_a_large_value_without_a_store_is_undelivered(tmp_path: Path, python: str) -> None:
    pod = Delivering.of(tmp_path, python, LARGE)
    code, _, err = pod.bare.run()
    assert code == 125
    reason = pod.undelivered()
    assert reason.startswith("the result has 100")
    assert "no store" in reason
    assert reason in err


def test_the_users_own_exception_travels_in_the_message(tmp_path: Path, python: str) -> None:
    pod = Delivering.of(tmp_path, python, "def f(): raise KeyError('ü')")
    assert pod.bare.run()[0] == 1
    pod.put()
    with pytest.raises(KeyError, match="ü"):
        pod.value()


# --- what is cut ----------------------------------------------------------------------------

RECURSION = """
import random
def g(n):
    if n == 0:
        raise {raised}
    exec(compile("g(n - 1)", "/some/path/%d/%s.py" % (n, random.random()), "exec"), globals(), locals())
def f():
    g(300)
"""


def test_a_long_traceback_is_cut_and_the_exception_stays_the_users_own(
    tmp_path: Path, python: str
) -> None:
    code = RECURSION.format(raised="LookupError('the reason')")
    pod = Delivering.of(tmp_path, python, code)
    code, _, err = pod.bare.run()
    assert (code, err) == (1, "")
    assert len(pod.bare.outcome().mark.traceback) > 20_000
    pod.put()
    with pytest.raises(LookupError, match="the reason") as caught:
        pod.value()
    trace = str(caught.value.__cause__)
    assert len(trace) > 1000
    assert trace.endswith("LookupError: the reason\n")
    assert "characters …]" in trace


def test_an_exception_that_is_large_itself_is_told_in_words(tmp_path: Path, python: str) -> None:
    code = RECURSION.format(
        raised="LookupError('the reason', random.getrandbits(640_000).to_bytes(80_000, 'big'))"
    )
    pod = Delivering.of(tmp_path, python, code)
    assert pod.bare.run()[0] == 1
    assert pod.bare.outcome().mark.size > 80_000
    pod.put()
    with pytest.raises(JobError, match=r"raised LookupError: \('the reason'") as caught:
        pod.value()
    assert "in g" in str(caught.value.__cause__) or "/some/path" in str(caught.value.__cause__)
    assert 3800 < len(pod.message) <= 4096


def test_words_that_do_not_shrink_are_cut_too(tmp_path: Path) -> None:
    code = (
        "import random\n"
        "def f(): raise LookupError(''.join(chr(random.randrange(0x4e00, 0x9fff)) for _ in range(60_000)))"
    )
    pod = Delivering.of(tmp_path, sys.executable, code)
    assert pod.bare.run()[0] == 1
    pod.put()
    with pytest.raises(JobError, match="raised LookupError"):
        pod.value()


def test_a_death_is_told_though_the_store_is_down(tmp_path: Path, free_port: int) -> None:
    code = "import os, random\ndef f(): raise LookupError(''.join(map(str, range(100_000))))"
    store = {"kind": "s3", "url": f"http://127.0.0.1:{free_port}/b", "fields": {}, "prefix": "p/"}
    pod = Delivering.of(tmp_path, sys.executable, code).configured({**store, "tries": 1})
    code, _, err = pod.bare.run()
    assert code == 1
    assert "Connection refused" in err
    pod.put()
    with pytest.raises(JobError, match="raised LookupError"):
        pod.value()


# --- hold -----------------------------------------------------------------------------------


@pytest.fixture
def holding(
    tmp_path: Path, python: str, free_port: int
) -> Iterator[tuple[Delivering, subprocess.Popen[str], int]]:
    pod = Delivering.of(tmp_path / NAME, python, LARGE)
    pod.configured({"kind": "hold", "port": free_port, "seconds": 60})
    with pod.bare.start() as process:
        assert wait_until(lambda: answers(free_port), 30)
        yield pod, process, free_port
        process.kill()


def test_what_is_held_is_given_and_then_let_go(
    holding: tuple[Delivering, subprocess.Popen[str], int],
) -> None:
    pod, process, port = holding
    assert pod.take() == 0
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    assert not answers(port)
    assert pod.parsed_message() == Stored(
        "hold", pod.parsed_message().mark, pod.parsed_message().result
    )  # type: ignore[union-attr]
    assert len(pod.value()) == 100_000
    assert not [path for path in (pod.mine / "results").iterdir() if path.name.startswith(".")]


def test_who_is_told_to_end_while_holding_ends(
    holding: tuple[Delivering, subprocess.Popen[str], int],
) -> None:
    pod, process, port = holding
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert process.returncode == 125
    assert "stopped before the client took the result" in err
    assert pod.parsed_message() == Undelivered("stopped before the client took the result")
    assert not answers(port)


def test_who_leaves_before_the_end_has_not_taken_it(tmp_path: Path, free_port: int) -> None:
    pod = Delivering.of(tmp_path, sys.executable, LARGE.replace("100_000", "10_000_000"))
    pod.configured({"kind": "hold", "port": free_port, "seconds": 60})
    with pod.bare.start() as process:
        assert wait_until(lambda: answers(free_port), 30)
        with pod.give() as taker:
            assert taker.stdout is not None and taker.stdin is not None
            taker.stdout.read(1000)
            taker.stdout.close()
            taker.stdin.close()
            assert taker.wait(30) == 1
            assert taker.stderr is not None and taker.stderr.read() == b""
        with pod.give() as taker:
            assert len(taker.communicate(b"took it\n")[0]) > 10_000_000
            assert taker.returncode == 1
        assert process.poll() is None
        assert answers(free_port)
        assert pod.take() == 0
        assert process.wait(30) == 0


def test_a_hold_ends_when_a_word_that_was_lost_is_said_again(
    holding: tuple[Delivering, subprocess.Popen[str], int],
) -> None:
    pod, process, _ = holding
    with pod.give() as taker:
        assert len(taker.communicate(b"")[0]) > 100_000
        assert taker.returncode == 1
    with pod.give(word="taken") as taker:
        assert taker.communicate(timeout=30) == (b"", b"")
        assert taker.returncode == 0
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("read", [0, 100_000_000])
def test_who_gives_does_not_wait_for_ever(tmp_path: Path, python: str, read: int) -> None:
    pod = Delivering.of(tmp_path, python, LARGE.replace("100_000", "1_000_000"))
    pod.bare.run()
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); import deliver; deliver.READ_TIMEOUT = 1; "
    words = ("give", str(pod.bare.root / "results"), "0", "0")
    with subprocess.Popen(
        [
            python,
            "-c",
            f"{program} sys.exit(deliver.main(sys.argv[1:]))",
            DELIVER_SCRIPT.parent,
            *words,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as taker:
        assert taker.stdout is not None
        if read:
            assert len(taker.stdout.read(read)) > 1_000_000
        assert taker.wait(30) == -signal.SIGALRM


def test_holding_has_an_end(tmp_path: Path, free_port: int) -> None:
    pod = Delivering.of(tmp_path, sys.executable, LARGE)
    pod.configured({"kind": "hold", "port": free_port, "seconds": 0.5})
    code, _, _ = pod.bare.run()
    assert code == 125
    assert pod.parsed_message() == Undelivered("the client did not take the result within 0.5 s")


def test_its_time_is_not_over_while_it_is_being_taken(tmp_path: Path, free_port: int) -> None:
    pod = Delivering.of(tmp_path, sys.executable, LARGE.replace("100_000", "30_000_000"))
    pod.configured({"kind": "hold", "port": free_port, "seconds": 3})
    with pod.bare.start() as process:
        assert wait_until(lambda: answers(free_port), 30)
        begun = time.monotonic()
        with pod.give() as taker:
            assert taker.stdout is not None and taker.stdin is not None
            while time.monotonic() - begun < 5:
                assert len(taker.stdout.read(256 << 10)) == 256 << 10
                assert process.poll() is None
                time.sleep(0.1)
            taker.stdout.close()
            taker.stdin.close()
        assert process.wait(60) == 125
    assert pod.parsed_message() == Undelivered("the client did not take the result within 3 s")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        pod = Delivering.of(tmp_path, sys.executable, LARGE)
        pod.configured({"kind": "hold", "port": port, "seconds": 60})
        assert pod.bare.run()[0] == 125
    reason = pod.undelivered()
    assert reason.startswith("cannot listen for the client: ")
    assert "Address already in use" in reason


def test_there_is_nothing_to_give_before_the_end(tmp_path: Path, python: str) -> None:
    pod = Delivering.of(tmp_path, python, LARGE)
    with pod.give() as taker:
        out, err = taker.communicate(b"taken\n", timeout=30)
    assert (taker.returncode, out) == (1, b"")
    assert err.startswith(b"no outcome to give: ")
    assert b"Traceback" not in err


# --- stores that go wrong ---------------------------------------------------------------------


def s3_store(address: str, **more: Any) -> dict[str, Any]:
    fields = {"policy": SECRET + "-policy", "x-amz-signature": SECRET, "x-amz-credential": SECRET}
    return {
        "kind": "s3", "url": f"http://{address}/b", "fields": fields, "prefix": "p/ü/", **more
    }  # fmt: skip


def registry_store(address: str, **more: Any) -> dict[str, Any]:
    subject = {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 1}
    store = {"base": f"http://{address}", "repository": "a/b", "token": SECRET, "tag": "t"}
    return {"kind": "registry", "subject": subject, **store, **more}


Store = Callable[..., dict[str, Any]]
both = pytest.mark.parametrize("store", [s3_store, registry_store])


def refused(root: Path, store: dict[str, Any], code: str = LARGE) -> str:
    """Why the outcome was not delivered; nothing secret is in the message."""
    pod = Delivering.of(root, sys.executable, code).configured(store)
    status, out, err = pod.bare.run()
    reason = pod.undelivered()
    assert (status, out) == (125, "")
    assert err == f"clustrix worker: the outcome was not delivered: {reason}\n"
    assert SECRET not in err + pod.message
    return reason


@both
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_store_that_stays_ill_is_tried_so_often_and_no_more(
    tmp_path: Path, store: Store, status: int
) -> None:
    with Front("", answer(status, b"<p>ill\n</p>", "Retry-After: 0")) as front:
        reason = refused(tmp_path, store(front.address, tries=4))
        assert reason == f"{front.address} rejected the result: {status} ill (tried 4 times)"
        assert front.requests == 4


@both
@pytest.mark.parametrize("act", [answer, answer_early])
def test_a_refusal_is_told_at_once_without_what_it_quotes(
    tmp_path: Path, store: Store, act: Callable[..., Any]
) -> None:
    body = (
        b"<Error><Code>AccessDenied</Code><Message>not with %s</Message>"
        b"<StringToSign>%s</StringToSign></Error>" % (SECRET.encode(), SECRET.encode())
    )
    code = LARGE.replace("100_000", "30_000_000")
    with Front("", act(403, body)) as front:
        reason = refused(tmp_path, store(front.address), code)
        assert front.requests == 1
    expected = "rejected the result: 403 AccessDenied: not with […]"
    assert reason == f"{front.address} {expected}"


def test_a_registrys_words_are_told(tmp_path: Path) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "quota \x1b[31m exceeded", "detail": "%s"}]}'
    body = body.replace(b"\x1b", b"\\u001b") % SECRET.encode()
    with Front("", answer(403, body)) as front:
        reason = refused(tmp_path, registry_store(front.address))
    assert reason.endswith("403 DENIED quota [31m exceeded")


@both
def test_a_store_that_is_down(tmp_path: Path, store: Store, free_port: int) -> None:
    reason = refused(tmp_path, store(f"127.0.0.1:{free_port}", tries=2))
    where = f"127.0.0.1:{free_port}"
    assert reason == f"{where} did not respond: Connection refused (tried 2 times)"


@both
@pytest.mark.parametrize("act", [hang_up, say_nothing], ids=["hangs up", "says nothing"])
def test_a_store_that_never_answers(tmp_path: Path, store: Store, act: Any) -> None:
    with Front("", act) as front:
        reason = refused(tmp_path, store(front.address, tries=2, timeout=1))
        assert front.requests == 2
    assert reason.startswith(f"{front.address} did not respond: ")
    assert reason.endswith("(tried 2 times)")


@both
def test_what_is_no_http_is_told_without_its_words(tmp_path: Path, store: Store) -> None:
    def babble(client: socket.socket) -> None:
        # All that has come: what is left unread would make a reset of the end.
        client.recv(1 << 20)
        client.sendall(SECRET.encode() + b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 20):
            pass

    with Front("", babble) as front:
        reason = refused(tmp_path, store(front.address, tries=1))
    assert reason == f"{front.address} did not respond: not an HTTP response (BadStatusLine)"


def test_who_is_told_to_end_stops_trying(tmp_path: Path, free_port: int) -> None:
    pod = Delivering.of(tmp_path, sys.executable, LARGE)
    with Front("", answer(503, b"", "Retry-After: 19")) as front:
        pod.configured(s3_store(front.address))
        with pod.bare.start() as process:
            assert wait_until(lambda: front.requests > 0, 30)
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - begun < 15
    assert process.returncode == 125
    assert "stopped before the next try" in err
    assert isinstance(pod.parsed_message(), Undelivered)


@pytest.mark.parametrize(
    "store",
    [
        {"kind": "s3"},
        {"kind": "hold"},
        {"kind": "hold", "port": "x", "seconds": 1},
        {"kind": "registry"},
        {"kind": "volume"},
        s3_store("127.0.0.1:x"),
        s3_store("127.0.0.1:1", ca=SECRET),
        s3_store("", url="ftp://x"),
        s3_store("127.0.0.1:1", fields=[SECRET]),
        registry_store("127.0.0.1:1", token=SECRET + "\r\nHost: x"),
        registry_store("127.0.0.1:1", token=SECRET + "ü€"),
        {"kind": "carrier pigeon"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(tmp_path: Path, store: dict[str, Any]) -> None:
    if "ca" in store:
        store = {**store, "url": store["url"].replace("http:", "https:")}
    assert refused(tmp_path, store)


def test_long_reasons_are_cut_between_characters(tmp_path: Path) -> None:
    pod = Delivering.of(tmp_path, sys.executable, LARGE)
    with Front("", answer(400, "ü€😀".encode() * 200)) as front:
        for limit in range(60, 72):
            pod.configured(s3_store(front.address), limit=limit)
            assert pod.bare.run()[0] == 125
            data = pod.message_file.read_bytes()
            assert limit - 4 <= len(data) <= limit
            assert data.decode().endswith("…")
