"""The run record: several clients at once, odd ids, and what is wrong with the file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clustrix_containers.api.options import Resources
from clustrix_containers.api.status import State
from clustrix_containers.clusters.task import Handle
from clustrix_containers.errors import ClusterError
from clustrix_containers.runs.record import Record, Run, Seen
from clustrix_containers.runs.record.handles import unpack

ROOT = Path(__file__).resolve().parents[3]


def run(identity: str, image: str = "sha256:1") -> Run:
    return Run(identity, "name", image, 1, "local", "local", target_options={"a": [1]})


def test_a_run_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    record = Record(tmp_path / "state ü")
    directory = record.intend(run("fit-aaaa"), built=True)
    record.intend(run("fit-abcd"), built=False)
    assert (directory / "key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert len((directory / "key").read_bytes()) == 32
    assert record.run("fit-aa").id == "fit-aaaa"
    assert record.run("fit-aaaa").target_options == {"a": [1]}
    with pytest.raises(ClusterError, match="start of 2 runs"):
        record.run("fit-a")
    for wrong in ("", "x", "%", "fit_aaaa"):
        with pytest.raises(ClusterError, match="no run"):
            record.run(wrong)


def test_fields_are_changed_and_a_run_is_removed(tmp_path: Path) -> None:
    record = Record(tmp_path)
    asked = replace(
        run("r-1"),
        count=2,
        resources=Resources(cpus=2, memory=1 << 30, env={"A": "ü"}),
        command=("python", "worker.py"),
        cluster_options={"queue": "gpu"},
    )
    record.intend(asked, built=False)
    assert not record.run("r-1").submitted
    handles = [Handle("r-1", 0, element, f"12[{element}].server") for element in range(2)]
    record.update("r-1", more=handles, state="submitted", how="an array")
    again = Handle("r-1", 1, 1, "13.server")
    record.update("r-1", more=[again])
    seen = Seen(3.5, {State.FAILED: 1, State.SUCCEEDED: 1})
    changed = record.update("r-1", state="done", seen=seen)
    found = record.run("r-1")
    assert found == changed
    assert unpack(found.handles, "r-1") == {0: handles[0], 1: again}
    assert (found.state, found.how, found.seen) == ("done", "an array", seen)
    assert (
        replace(found, handles=(), state="intent", how="", seen=None, created=0, updated=0) == asked
    )
    record.remove("r-1")
    assert record.runs() == []
    with pytest.raises(ClusterError, match="no run"):
        record.update("r-1", state="done")


def test_a_run_of_an_older_version_is_listed_as_not_submitted(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.intend(run("old-1"), built=True)
    db = sqlite3.connect(tmp_path / "runs.sqlite3")
    with db:
        db.execute("UPDATE run SET details = ?", ('{"ids": {"prefix": "x"}, "options": {}}',))
    db.close()
    assert not record.run("old-1").submitted


def test_only_what_this_user_built_is_trusted(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.intend(run("r-1", "sha256:mine"), built=True)
    record.intend(run("r-2", "sha256:foreign"), built=False)
    assert record.built("sha256:mine")
    assert not record.built("sha256:foreign")


def test_many_clients_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from clustrix_containers.runs.record import Record, Run\n"
        "record = Record(Path(sys.argv[1]))\n"
        "for i in range(15):\n"
        "    name = f'{sys.argv[2]}-{i}'\n"
        "    record.intend(Run(name, 'n', 'sha256:1', 1, 'local', 'local'), built=True)\n"
        "    record.update(name, state='done')\n"
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
