"""Results on a volume: the worker writes files, the client reads them where it sees them too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustrix_containers.errors import ClusterError, ResultError
from clustrix_containers.results import delivery
from clustrix_containers.results.delivery import Stored
from clustrix_containers.results.stores import volume as store
from tests.bare_worker import RUN, interpreters
from tests.clusters.daemon import wait_until
from tests.clusters.faults.late import LateView
from tests.clusters.faults.volume import Volume
from tests.delivered import DELIVER_SCRIPT, Delivering

SIZE = 1_000_000
LARGE = f"import os\ndef f(): return os.urandom({SIZE})"
FAILS = "import os\ndef f():\n    error = ValueError('no'); error.data = os.urandom(9000)\n    raise error"
HIDDEN = 100_000.0
"""Seconds that no test waits for."""


def config(place: Path, **more: object) -> dict[str, Any]:
    return {"kind": "volume", "path": str(place), "claim": "results", **more}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of the run, on a volume that is there already."""
    root = tmp_path / "a 'volume\" \n ü"
    root.mkdir()
    root.chmod(0o2770)
    return root / "sub dir" / RUN


@pytest.fixture
def pod(tmp_path: Path, place: Path) -> Delivering:
    return Delivering.of(tmp_path / "p", sys.executable, LARGE).configured(config(place))


def stored(pod: Delivering) -> Stored:
    parsed = pod.parsed_message()
    assert isinstance(parsed, Stored), parsed
    return parsed


def fetch(place: Path, pod: Delivering, parsed: Stored | None) -> bool:
    return store.fetch(place, pod.expected(), parsed)


def read(pod: Delivering, place: Path, mark: str, sign: Path) -> None:
    """What a pod with the volume sends, put into the client's directory."""
    done = subprocess.run(
        [pod.bare.python, DELIVER_SCRIPT, "read", place, "0", "0", mark, sign],
        capture_output=True,
        check=True,
    )
    delivery.receive([done.stdout], pod.expected())


def again(pod: Delivering) -> None:
    """Another container of the same element and attempt."""
    for path in (pod.bare.root / "results").iterdir():
        path.unlink()
    pod.bare.run()


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("python", interpreters())
def test_a_result_goes_over_a_volume(tmp_path: Path, place: Path, python: str) -> None:
    pod = Delivering.of(tmp_path / "p", python, LARGE).configured(config(place))
    assert not fetch(place, pod, None)
    assert pod.bare.run() == (0, "", "")
    parsed = stored(pod)
    assert parsed.kind == "volume"
    assert names(place) == sorted(filter(None, [parsed.mark, parsed.result]))
    assert fetch(place, pod, parsed)
    assert len(pod.value()) == SIZE


@pytest.mark.parametrize("python", interpreters())
def test_a_pod_reads_it_for_a_client_that_does_not_see_it(
    tmp_path: Path, place: Path, python: str
) -> None:
    pod = Delivering.of(tmp_path / "p", python, LARGE).configured(config(place))
    sign = tmp_path / "sign"
    for name in ("-", "0.0.0123456789abcdef.mark"):
        with pytest.raises(delivery.Absent):
            read(pod, place, name, sign)
    assert pod.bare.run() == (0, "", "")
    with pytest.raises(delivery.Absent):
        read(pod, place, "0.0.0123456789abcdef.mark", sign)
    sign.unlink()
    for name in (stored(pod).mark, "-"):
        read(pod, place, name, sign)
        assert sign.exists()
    assert len(pod.value()) == SIZE


def test_what_is_not_large_does_not_go_there(tmp_path: Path, place: Path) -> None:
    pod = Delivering.of(tmp_path / "p", sys.executable, "def f(): return 1").configured(
        config(place)
    )
    assert pod.bare.run() == (0, "", "")
    pod.put()
    assert pod.value() == 1
    assert not place.exists()


def test_two_containers_of_one_element_do_not_meet(place: Path, pod: Delivering) -> None:
    pod.bare.run()
    first = stored(pod)
    again(pod)
    second = stored(pod)
    assert len(names(place)) == 4
    assert fetch(place, pod, second)
    assert pod.outcome().mark.sha256[:16] in str(second.result)
    assert first.result != second.result


def test_without_a_message_what_succeeded_counts_and_then_the_oldest(
    tmp_path: Path, place: Path
) -> None:
    failing = Delivering.of(tmp_path / "a", sys.executable, FAILS).configured(config(place))
    assert failing.bare.run()[0] == 1
    pod = Delivering.of(tmp_path / "b", sys.executable, LARGE).configured(config(place))
    pod.bare.run()
    first = stored(pod)
    again(pod)
    # Files of a volume are anybody's who may write there.
    (place / "0.0.0000000000000000.mark").write_text("{}")
    assert fetch(place, pod, None)
    assert pod.outcome().mark.sha256[:16] in str(first.result)
    (place / "0.0.0000000000000000.mark").unlink()
    read(failing, place, "-", tmp_path / "sign")
    assert failing.outcome().mark.sha256[:16] in str(first.result)


def test_what_is_not_the_runs_is_not_taken(place: Path, pod: Delivering) -> None:
    pod.bare.run()
    parsed = stored(pod)
    mark = (place / parsed.mark).read_bytes()
    (place / parsed.mark).write_bytes(mark.replace(b'"ok"', b'"died"'))
    for known in (parsed, None):
        with pytest.raises(ResultError, match="not written by this run's worker"):
            fetch(place, pod, known)
    (place / parsed.mark).write_bytes(mark)
    result = place / str(parsed.result)
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    with pytest.raises(ResultError, match="is not what its worker wrote"):
        fetch(place, pod, parsed)
    result.unlink()
    assert not fetch(place, pod, parsed)
    with pytest.raises(delivery.Absent):
        read(pod, place, parsed.mark, place.parent / "sign")
    result.symlink_to("/etc/passwd")
    with pytest.raises(ClusterError, match="cannot be read"):
        fetch(place, pod, parsed)
    result.unlink()
    os.mkfifo(result)
    with pytest.raises(ResultError):
        fetch(place, pod, parsed)
    assert names(pod.mine / "results") == []


def test_it_is_as_open_as_the_directory_that_it_lies_in(place: Path, pod: Delivering) -> None:
    pod.bare.run()
    assert [path.stat().st_mode & 0o7777 for path in (place.parent, place)] == [0o2770] * 2
    assert {path.stat().st_mode & 0o7777 for path in place.iterdir()} == {0o640}
    root = place.parent.parent
    (root / "open").mkdir()
    (root / "open").chmod(0o777)
    pod.configured(config(root / "open" / RUN)).bare.run()
    assert (root / "open" / RUN).stat().st_mode & 0o777 == 0o777
    assert {path.stat().st_mode & 0o777 for path in (root / "open" / RUN).iterdir()} == {0o644}


def test_a_file_where_a_directory_should_be(place: Path, pod: Delivering) -> None:
    place.parent.write_text("")
    assert pod.bare.run()[0] == 125
    reason = pod.undelivered()
    assert reason == "the volume claim results cannot store the result: Not a directory"


def test_how_a_call_failed_is_told_though_the_volume_is_not_there(
    tmp_path: Path, place: Path
) -> None:
    pod = Delivering.of(tmp_path / "p", sys.executable, FAILS).configured(config(place))
    place.parent.write_text("")
    assert pod.bare.run()[0] == 1
    pod.put()
    with pytest.raises(Exception, match="no"):
        pod.value()


@pytest.mark.parametrize("words", [(), ("read", "x"), ("wait", "x"), ("give",)])
def test_how_the_program_is_used(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, DELIVER_SCRIPT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: deliver.py" in done.stderr


def test_a_reader_lives_while_it_is_used_and_ends_when_it_is_told(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    command = [sys.executable, DELIVER_SCRIPT, "wait", sign]
    assert subprocess.run([*command, "0.5"]).returncode == 0
    sign.unlink()
    with subprocess.Popen([*command, "1000"]) as process:
        assert wait_until(sign.exists, 30)
        process.terminate()
        assert process.wait(30) == 0


# --- disks and views of them ------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cx 'v ä ") as directory:
        yield Path(directory)


@pytest.fixture
def disk(own: Path) -> Iterator[Volume]:
    made = Volume(own / "disk", 4 << 20, with_parent=True)
    made.up()
    yield made
    made.down()


@pytest.mark.machines
def test_a_full_volume(disk: Volume, pod: Delivering) -> None:
    place = disk.path / RUN
    disk.fill(leave=SIZE // 2)
    pod.configured(config(place, tries=2))
    assert pod.bare.run()[0] == 125
    reason = pod.undelivered()
    assert reason == (
        "the volume claim results cannot store the result: No space left on device (tried 2 times)"
    )
    assert names(place) == []


@pytest.mark.machines
def test_a_full_volume_that_is_emptied(disk: Volume, pod: Delivering) -> None:
    place = disk.path / RUN
    disk.fill(leave=SIZE // 2)
    pod.configured(config(place))
    with pod.bare.start() as process:
        assert wait_until(place.exists, 30)
        disk.free()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert fetch(place, pod, stored(pod))


@pytest.mark.machines
def test_files_that_show_late(own: Path, place: Path, pod: Delivering) -> None:
    root = place.parent.parent
    view = LateView(own / "late", root, with_parent=True)
    view.up()
    try:
        view.show_after(HIDDEN)
        seen = view.path / place.relative_to(root)
        pod.bare.run()
        assert not fetch(seen, pod, stored(pod))
        assert not fetch(seen, pod, None)
        # The container, too, may be where what others made shows late.
        pod.configured(config(seen))
        with pod.bare.start(attempt=1) as process:
            assert wait_until((pod.bare.root / "results/0.1.mark").exists, 30)
            view.show_after(0)
            process.communicate(timeout=60)
        assert store.fetch(seen, pod.expected(attempt=1), stored(pod))
        assert fetch(seen, pod, None)
        assert len(names(place)) == 4
    finally:
        view.down()
    assert json.loads((place / stored(pod).mark).read_text())["outcome"] == "ok"
