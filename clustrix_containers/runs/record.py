"""The local run record: enough to list, re-attach, cancel and re-run after the client died.

One SQLite file with a rollback journal (no WAL: homes lie on NFS), one short
transaction per change, so that several clients may write at once. What an element
is doing is not kept here: the cluster and the completion marks are asked. What was seen when
they were last asked is, for when they cannot be.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError

_SCHEMA = 1
_CREATE = """
CREATE TABLE run (
    id TEXT PRIMARY KEY,
    created REAL NOT NULL,
    name TEXT NOT NULL,
    image TEXT NOT NULL,
    count INTEGER NOT NULL,
    target TEXT NOT NULL,
    type TEXT NOT NULL,
    details TEXT NOT NULL,
    state TEXT NOT NULL,
    updated REAL NOT NULL
) STRICT;
CREATE INDEX run_image ON run (image);
CREATE TABLE built (digest TEXT PRIMARY KEY, created REAL NOT NULL, name TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``image`` is its digest; ``state`` is ``intent``, ``submitted``, ``done`` or ``cancelled``.

    ``created`` and ``updated`` are seconds since the epoch. ``details`` is JSON of the stages
    above: the cluster's options, its ids, resources, the script the types belong to.
    """

    id: str
    name: str
    image: str
    count: int
    target: str
    type: str
    details: Mapping[str, Any] = field(default_factory=dict)
    state: str = "intent"
    created: float = 0.0
    updated: float = 0.0


class Record:
    """The record in ``directory`` (made if missing, 0700); each run's own directory is below it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / "runs.sqlite3"
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _CREATE.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA}")
            elif version != _SCHEMA:
                raise ClusterError(
                    f"the run record {self._path} has format {version}, this version reads {_SCHEMA}",
                    hint="Use the version of clustrix-containers that wrote it, or set CLUSTRIX_STATE_DIR to a new directory.",
                )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self._path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise ClusterError(f"cannot open the run record {self._path}: {error}") from error
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise ClusterError(
                f"the run record {self._path} cannot be used: {error}",
                hint="Is the disk full, or the directory read-only? CLUSTRIX_STATE_DIR names another place.",
            ) from error
        finally:
            db.close()

    def run_directory(self, run: str) -> Path:
        """Where a run's key, results and logs lie on this machine."""
        return self.directory / "runs" / run

    def intend(self, run: Run, *, built: bool, key: bytes | None = None) -> Path:
        """Record that ``run`` is about to be submitted; gives its directory (0700, with a 0600 key).

        The key is a new one, unless the run has been submitted elsewhere with ``key``.
        ``built`` says that this user made the run's image: its results are trusted from now on.
        """
        directory = self.run_directory(run.id)
        directory.mkdir(parents=True, mode=0o700)
        for name in ("results", "logs"):
            (directory / name).mkdir(mode=0o700)
        descriptor = os.open(directory / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key or os.urandom(32))
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO run VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    run.id,
                    now,
                    run.name,
                    run.image,
                    run.count,
                    run.target,
                    run.type,
                    json.dumps(dict(run.details)),
                    run.state,
                    now,
                ),
            )
            if built:
                db.execute("INSERT OR IGNORE INTO built VALUES (?,?,?)", (run.image, now, run.name))
        return directory

    def update(self, run: str, *, state: str | None = None, **details: Any) -> None:
        """Change a run's state, or add to its details."""
        with self._transaction() as db:
            row = db.execute("SELECT details, state FROM run WHERE id = ?", (run,)).fetchone()
            if row is None:
                raise ClusterError(f"no run {run!r} in the record {self._path}")
            merged = {**json.loads(row[0]), **details}
            db.execute(
                "UPDATE run SET details = ?, state = ?, updated = ? WHERE id = ?",
                (json.dumps(merged), state or row[1], time.time(), run),
            )

    def move(self, run: str, ids: Mapping[int, str], attempt: int) -> None:
        """Record that elements run again, under these ids."""
        known = self.run(run).details.get("moved") or {}
        more = {str(element): [attempt, name] for element, name in ids.items()}
        self.update(run, moved={**known, **more})

    def moved(self, run: Run) -> dict[int, tuple[int, str]]:
        """Attempt and id of each element of a run that runs again."""
        moved = run.details.get("moved") or {}
        return {int(element): (attempt, name) for element, (attempt, name) in moved.items()}

    def runs(self, *, limit: int | None = None) -> list[Run]:
        """The runs, newest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM run ORDER BY created DESC, id LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [_run(row) for row in rows]

    def run(self, name: str) -> Run:
        """The run with this id, or the only one whose id starts with it; ClusterError otherwise."""
        escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM run WHERE id LIKE ? ESCAPE '\\' ORDER BY created DESC",
                (escaped + "%",),
            ).fetchall()
        found = [_run(row) for row in rows]
        exact = [run for run in found if run.id == name]
        if exact:
            return exact[0]
        if not name or not found:
            raise ClusterError(
                f"no run {name!r} in this user's record",
                hint="`cxc ps` lists the runs that are there.",
                run=name,
            )
        if len(found) > 1:
            some = ", ".join(run.id for run in found[:5])
            raise ClusterError(f"{name!r} is the start of {len(found)} runs: {some}")
        return found[0]

    def remove(self, run: str) -> None:
        """Forget a run; its directory is the caller's to remove first."""
        with self._transaction() as db:
            db.execute("DELETE FROM run WHERE id = ?", (run,))

    def built(self, digest: str) -> bool:
        """Whether this user's record built the image ``digest``."""
        with self._transaction() as db:
            row = db.execute("SELECT 1 FROM built WHERE digest = ?", (digest,)).fetchone()
        return row is not None


def _run(row: tuple[Any, ...]) -> Run:
    identity, created, name, image, count, target, kind, details, state, updated = row
    return Run(
        identity, name, image, count, target, kind, json.loads(details), state, created, updated
    )
