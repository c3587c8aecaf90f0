"""Files that show late, and a disk that is full: real mounts, seen by an ordinary user."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.clusters.daemon import wait_until
from tests.clusters.faults.late import LateView
from tests.clusters.faults.mounts import mounted
from tests.clusters.faults.volume import Volume
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network

pytestmark = pytest.mark.machines

HIDDEN = 100_000.0
"""Seconds that no test waits for: what is to be hidden stays so on the slowest machine."""

_T = TypeVar("_T")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a hostile name; it is empty in the end."""
    directory = Path(tempfile.mkdtemp(prefix="cx 'f\" ä\n,\\:"))
    directory.chmod(0o755)
    yield directory
    assert names(directory) == []
    directory.rmdir()


@pytest.fixture
def source(place: Path) -> Iterator[Path]:
    made = place / "source"
    made.mkdir()
    made.chmod(0o1777)
    (made / "old").write_text("old")
    yield made
    subprocess.run(["rm", "-rf", "--", made], check=True)


@pytest.fixture
def view(place: Path, source: Path) -> Iterator[LateView]:
    made = LateView(place / "late", source, with_parent=True)
    made.up()
    yield made
    made.down()


@pytest.fixture
def volume(place: Path) -> Iterator[Volume]:
    made = Volume(place / "volume", 4 * 2**20, with_parent=True)
    made.up()
    yield made
    made.down()


def error(act: Callable[[], _T]) -> int:
    """The errno with which it fails; 0 if it does not."""
    try:
        act()
    except OSError as failed:
        return failed.errno or -1
    return 0


def names(folder: Path) -> list[str]:
    return sorted(it.name for it in folder.iterdir())


def as_nobody(script: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=where,
    )


def test_a_view_is_its_source(view: LateView, source: Path) -> None:
    inside = view.path
    (source / "there").write_text("from there")
    assert (inside / "there").read_text() == "from there"
    name = "ü 'n\" \n\udcff"
    (inside / name).write_bytes(b"x" * 300_000)
    assert (source / name).read_bytes() == b"x" * 300_000
    with (inside / name).open("ab") as file:
        file.write(b"end")
    assert (source / name).read_bytes()[-4:] == b"xend"
    (inside / "folder").mkdir(0o750)
    (inside / name).replace(inside / "folder" / "moved")
    (inside / "link").symlink_to("folder/moved")
    (inside / "hard").hardlink_to(inside / "folder" / "moved")
    assert names(inside) == ["folder", "hard", "link", "old", "there"]
    assert (inside / "link").stat().st_size == (inside / "hard").stat().st_size == 300_003
    assert (source / "folder").stat().st_mode & 0o7777 == 0o750
    (inside / "hard").chmod(0o640)
    os.utime(inside / "hard", ns=(5, 7))
    os.truncate(inside / "hard", 3)
    found = (source / "folder" / "moved").stat()
    assert (found.st_mode & 0o7777, found.st_atime_ns, found.st_size) == (0o640, 5, 3)
    os.utime(inside / "hard")
    assert time.time() - (source / "hard").stat().st_mtime < 10_000
    (inside / "hard").unlink()
    (inside / "link").unlink()
    (inside / "folder" / "moved").unlink()
    (inside / "folder").rmdir()
    assert names(source) == ["old", "there"]
    assert os.statvfs(inside).f_blocks == os.statvfs(source).f_blocks


def test_an_open_file_outlives_its_name(view: LateView, source: Path) -> None:
    with (view.path / "file").open("w+") as file:
        file.write("kept")
        file.flush()
        (view.path / "file").unlink()
        assert names(source) == ["old"]
        file.seek(0)
        assert file.read() == "kept"


def test_what_others_make_shows_late(view: LateView, source: Path) -> None:
    inside = view.path
    view.show_after(HIDDEN)
    (source / "new").write_text("new")
    (source / "folder").mkdir()
    (source / "folder" / "deep").write_text("deep")
    for _ in range(2):
        assert error((inside / "new").stat) == errno.ENOENT
        assert error((inside / "new").read_text) == errno.ENOENT
        assert error(lambda: (inside / "new").rename(inside / "other")) == errno.ENOENT
        assert error(lambda: names(inside / "folder")) == errno.ENOENT
        assert names(inside) == ["old"]
    view.show_after(0)
    assert (inside / "new").read_text() == "new"
    assert names(inside) == ["folder", "new", "old"]
    view.show_after(HIDDEN)
    assert (inside / "new").read_text() == "new"
    assert (inside / "folder" / "deep").exists() is False


def test_it_shows_by_itself_when_its_time_has_come(view: LateView, source: Path) -> None:
    view.show_after(1.5)
    before = time.time()
    (source / "new").write_text("")
    assert wait_until((view.path / "new").exists, 60)
    # The kernel stamps files by a clock that is up to 10 ms behind.
    assert time.time() - before >= 1.5 - 0.02


def test_a_file_that_is_written_all_the_time_shows_as_well(view: LateView, source: Path) -> None:
    view.show_after(HIDDEN)
    with (source / "log").open("w") as log:

        def shows() -> bool:
            log.write("line\n")
            log.flush()
            return (view.path / "log").exists()

        assert not shows()
        view.show_after(1.0)
        assert wait_until(shows, 60)


def test_what_takes_its_final_name_by_rename_is_late(view: LateView, source: Path) -> None:
    (source / ".part").write_text("done")
    assert (view.path / ".part").exists()
    view.show_after(HIDDEN)
    (source / ".part").rename(source / "mark")
    assert names(view.path) == ["old"]
    # A name that has shown is asked for anew: its new content is there at once.
    (source / "next").write_text("replaced")
    (source / "next").rename(source / "old")
    assert (view.path / "old").read_text() == "replaced"
    (source / "old").unlink()
    assert error((view.path / "old").stat) == errno.ENOENT
    (source / "old").write_text("again")
    assert error((view.path / "old").stat) == errno.ENOENT


def test_what_one_makes_oneself_shows_at_once(view: LateView, source: Path) -> None:
    inside = view.path
    view.show_after(HIDDEN)
    (inside / "part").mkdir()
    (inside / "part" / "file").write_text("mine")
    (inside / "part").rename(inside / "whole")
    assert (inside / "whole" / "file").read_text() == "mine"
    assert names(inside / "whole") == ["file"]


def test_the_server_knows_what_has_not_shown(view: LateView, source: Path) -> None:
    inside = view.path
    view.show_after(HIDDEN)
    (source / "lock").mkdir()
    (source / "file").write_text("theirs")
    assert error((inside / "lock").mkdir) == errno.EEXIST
    assert error(lambda: (inside / "file").open("x")) == errno.EEXIST
    with (inside / "file").open("a") as file:
        file.write(", ours")
    assert (source / "file").read_text() == "theirs, ours"


def test_users_are_who_they_are(view: LateView, source: Path) -> None:
    done = as_nobody(
        "mkdir d && echo x > d/f && ln -s f d/l && ! echo y > old && cat d/l", view.path
    )
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
    for name in ("d", "d/f", "d/l"):
        assert (source / name).lstat().st_uid == (source / name).lstat().st_gid == 65534
    (source / "secret").write_text("")
    (source / "secret").chmod(0o600)
    assert "Permission denied" in as_nobody("cat secret", view.path).stderr


def test_a_full_disk_is_enospc_and_can_be_freed(volume: Volume) -> None:
    (volume.path / "before").write_bytes(b"x" * 10_000)
    volume.fill()
    assert volume.available == 0
    done = as_nobody("dd if=/dev/zero of=more bs=64k count=1", volume.path)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert error(lambda: (volume.path / "other").write_bytes(b"x" * 10_000)) == errno.ENOSPC
    assert (volume.path / "before").read_bytes() == b"x" * 10_000
    volume.free()
    assert as_nobody("dd if=/dev/zero of=more bs=64k count=1", volume.path).returncode == 0
    volume.fill(leave=2**20)
    assert 0 < volume.available <= 2**20


def test_a_full_disk_under_a_view_is_full_there(place: Path, volume: Volume) -> None:
    view = LateView(place / "late", volume.path, with_parent=True)
    view.up()
    try:
        volume.fill()
        with (view.path / "file").open("wb", buffering=0) as file:
            assert error(lambda: file.write(b"x" * 100_000)) == errno.ENOSPC
    finally:
        view.down()


def test_one_machine_sees_late_what_another_writes(
    place: Path, machine_directory: Path, machine_root: Path, network: Network
) -> None:
    """As on a cluster: a compute node has the files, and the login node its own view of them."""
    volume = Volume(place / "volume", 2**20, with_parent=True)
    view = LateView(place / "late", volume.path, with_parent=True)
    volume.up()
    view.up()
    there: dict[Path, str] = {volume.path: "/shared"}
    here: dict[Path, str] = {view.path: "/shared"}
    node = Machine("node", machine_directory / "1", machine_root, network, 2, there, True)
    login = Machine("login", machine_directory / "2", machine_root, network, 3, here, True)
    try:
        for machine in (node, login):
            machine.up()
            machine.run("useradd", "--uid=2001", "--create-home", "alice")
        login.run("mkdir", "/shared/run", user="alice")
        view.show_after(HIDDEN)
        node.run("sh", "-c", "echo done > /shared/run/.mark", user="alice")
        node.run("mv", "/shared/run/.mark", "/shared/run/mark", user="alice")
        assert login.run("ls", "/shared/run", user="alice").stdout == ""
        view.show_after(0)
        assert login.run("cat", "/shared/run/mark", user="alice").stdout == "done\n"
        volume.fill()
        full = "head -c 100000 /dev/zero > /shared/more"
        for machine in (node, login):
            done = machine.run("sh", "-c", full, user="alice", check=False)
            assert "No space left on device" in done.stderr
    finally:
        node.down()
        login.down()
        view.down()
        volume.down()


START = """
import sys
from pathlib import Path
from tests.clusters.faults.late import LateView
from tests.clusters.faults.volume import Volume
place = Path(sys.argv[1])
volume = Volume(place / "volume", 2**20, with_parent=True)
volume.up()
LateView(place / "late", volume.path, with_parent=True).up()
print("up", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_test_run_had_is_unmounted(place: Path) -> None:
    volume = Volume(place / "volume", 2**20, with_parent=True)
    view = LateView(place / "late", volume.path, with_parent=True)
    with subprocess.Popen(
        [sys.executable, "-c", START, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        assert mounted(view.path) and mounted(volume.path)
        process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not mounted(view.path) and not mounted(volume.path), 60)
    volume.up()
    view.up()
    view.down()
    volume.down()


def test_a_view_whose_process_was_killed_comes_back_and_goes(
    view: LateView, source: Path, place: Path
) -> None:
    pid = int((place / "late" / "late.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: error(lambda: names(view.path)) == errno.ENOTCONN, 60)
    view.up()
    assert names(view.path) == ["old"]
    pid = int((place / "late" / "late.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    view.down()
    assert not mounted(view.path)
