"""The run record: several clients at once, odd ids, and what is wrong with the file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from clustrix_containers.errors import ClusterError
from clustrix_containers.runs.record import Record, Run

ROOT = Path(__file__).resolve().parents[2]


def run(identity: str, image: str = "sha256:1") -> Run:
    return Run(identity, "name", image, 1, "local", "local", {"a": [1]})


def test_a_run_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    book = Record(tmp_path / "state ü")
    directory = book.intend(run("fit-aaaa"), built=True)
    book.intend(run("fit-abcd"), built=False)
    assert (directory / "key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert len((directory / "key").read_bytes()) == 32
    assert book.run("fit-aa").id == "fit-aaaa"
    assert book.run("fit-aaaa").details == {"a": [1]}
    with pytest.raises(ClusterError, match="start of 2 runs"):
        book.run("fit-a")
    for wrong in ("", "x", "%", "fit_aaaa"):
        with pytest.raises(ClusterError, match="no run"):
            book.run(wrong)


def test_details_are_added_and_a_run_is_forgotten(tmp_path: Path) -> None:
    book = Record(tmp_path)
    book.intend(run("r-1"), built=False)
    book.update("r-1", state="submitted", ids=["x"])
    found = book.run("r-1")
    assert (found.state, found.details) == ("submitted", {"a": [1], "ids": ["x"]})
    book.remove("r-1")
    assert book.runs() == []
    with pytest.raises(ClusterError, match="no run"):
        book.update("r-1", state="done")


def test_only_what_this_user_built_is_trusted(tmp_path: Path) -> None:
    book = Record(tmp_path)
    book.intend(run("r-1", "sha256:mine"), built=True)
    book.intend(run("r-2", "sha256:foreign"), built=False)
    assert book.built("sha256:mine")
    assert not book.built("sha256:foreign")


def test_many_clients_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from clustrix_containers.runs.record import Record, Run\n"
        "book = Record(Path(sys.argv[1]))\n"
        "for i in range(15):\n"
        "    name = f'{sys.argv[2]}-{i}'\n"
        "    book.intend(Run(name, 'n', 'sha256:1', 1, 'local', 'local'), built=True)\n"
        "    book.update(name, state='done')\n"
    )
    clients = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"c{n}"], cwd=ROOT)
        for n in range(4)
    ]
    assert [client.wait(60) for client in clients] == [0] * 4
    assert len(Record(tmp_path).runs()) == 60
    assert {item.state for item in Record(tmp_path).runs()} == {"done"}
    with sqlite3.connect(tmp_path / "runs.sqlite3") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()


def test_a_record_of_a_newer_version_and_a_broken_one_are_said(tmp_path: Path) -> None:
    Record(tmp_path)
    path = tmp_path / "runs.sqlite3"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ClusterError, match="format 99"):
        Record(tmp_path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ClusterError, match=r"runs\.sqlite3"):
        Record(tmp_path)
