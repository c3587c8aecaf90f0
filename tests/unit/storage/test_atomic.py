"""Atomic writes: a reader sees the old file or the new one, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clustrix_containers.storage.atomic import replacing, write


def test_it_appears_at_the_end_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    write(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half of it", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path, partial = tmp_path / "file", tmp_path / "unfinished"
    path.write_bytes(b"old")
    code = """
import sys
from pathlib import Path
from clustrix_containers.storage.atomic import replacing
with replacing(Path(sys.argv[1]), partial=Path(sys.argv[2])) as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""
    argv = [sys.executable, "-c", code, str(path), str(partial)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    assert [item.read_bytes() for item in partial.iterdir()] == [b"half of it"]
    write(path, b"new", partial=partial)
    assert path.read_bytes() == b"new"
    assert len(list(partial.iterdir())) == 1


@pytest.mark.parametrize(("mode", "umask", "result"), [(0o666, 0o022, 0o644), (0o600, 0, 0o600)])
def test_the_mode_is_subject_to_the_umask(
    tmp_path: Path, mode: int, umask: int, result: int
) -> None:
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        write(path, b"", mode=mode)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == result


def test_durable_syncs_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    synced: list[tuple[int, bool]] = []

    def fsync(number: int) -> None:
        synced.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, b"12345")
    assert synced == []
    path.unlink()
    write(path, b"12345", durable=True)
    assert synced == [(5, False)]


def test_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write(path, b"x")
    assert path.read_bytes() == b"x"
