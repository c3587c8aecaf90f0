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
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Resources
from clustrix_containers.api.status import State
from clustrix_containers.clusters.task import Handle, Task
from clustrix_containers.config.paths import paths
from clustrix_containers.errors import ClusterError
from clustrix_containers.storage import atomic

from .handles import pack

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
class Seen:
    """How many elements were in which state, ``at`` a time (seconds since the epoch)."""

    at: float
    states: Mapping[State, int]


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was asked, where it went, and what is known of it.

    ``image`` is its digest, ``reference`` what its target runs; ``count`` the number of its elements.
    ``target_options`` are those of ``clustrix.yml``, ``cluster_options`` those of the call for this
    type of cluster alone. ``main`` is the script that the run's types belong to. ``how`` is what the
    target chose at submission. ``handles`` is packed, see :mod:`.handles`, and empty until the
    target has accepted the run. ``state`` is ``intent``, ``submitted`` or ``done``; ``created``
    and ``updated`` are seconds since the epoch.
    """

    id: str
    name: str
    image: str
    count: int
    target: str
    type: str
    reference: str = ""
    array: bool = False
    command: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    max_parallel: int | None = None
    retries: int = 0
    target_options: Mapping[str, Any] = field(default_factory=dict)
    cluster_options: Mapping[str, Any] = field(default_factory=dict)
    main: str | None = None
    how: str = ""
    handles: tuple[Mapping[str, Any], ...] = ()
    seen: Seen | None = None
    state: str = "intent"
    created: float = 0.0
    updated: float = 0.0

    @property
    def submitted(self) -> bool:
        """Whether its target is known to have accepted it."""
        return bool(self.handles)

    def task(self, directory: Path) -> Task:
        """What its cluster may know of the run's first attempt."""
        return Task(
            run=self.id,
            name=self.name,
            image=self.reference,
            elements=range(self.count),
            resources=self.resources,
            directory=directory,
            max_parallel=self.max_parallel,
            command=self.command,
            array=self.array,
            retries=self.retries,
            options=self.cluster_options,
        )


_COLUMNS = re.findall(r"^    (\w+) ", _CREATE, re.MULTILINE)
_DETAILS = tuple(item.name for item in fields(Run) if item.name not in _COLUMNS)


def _to_details(run: Run) -> str:
    """The fields that have no column of their own, as JSON."""
    value = {name: getattr(run, name) for name in _DETAILS}
    value["resources"] = asdict(run.resources)
    if run.seen is not None:
        states = {state.value: count for state, count in run.seen.states.items()}
        value["seen"] = {"at": run.seen.at, "states": states}
    return json.dumps(value)


def _from_row(row: tuple[Any, ...]) -> Run:
    columns = dict(zip(_COLUMNS, row, strict=True))
    details = json.loads(columns.pop("details"))
    known = {name: details[name] for name in _DETAILS if details.get(name) is not None}
    for name in ("command", "handles"):
        known[name] = tuple(known.get(name, ()))
    known["resources"] = Resources(**known.get("resources", {}))
    if seen := known.get("seen"):
        states = {State(name): count for name, count in seen["states"].items()}
        known["seen"] = Seen(seen["at"], states)
    return Run(**columns, **known)


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
            connection = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            with contextlib.closing(connection) as db, db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except sqlite3.Error as error:
            raise ClusterError(
                f"the run record {self._path} cannot be used: {error}",
                hint="Is the disk full, or the directory read-only? CLUSTRIX_STATE_DIR names another place.",
            ) from error

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
        atomic.write(directory / "key", key or os.urandom(32), mode=0o600)
        now = time.time()
        with self._transaction() as db:
            values = asdict(run) | {"created": now, "updated": now, "details": _to_details(run)}
            marks = ", ".join("?" * len(_COLUMNS))
            row = [values[name] for name in _COLUMNS]
            db.execute(f"INSERT INTO run VALUES ({marks})", row)  # noqa: S608
            if built:
                db.execute("INSERT OR IGNORE INTO built VALUES (?,?,?)", (run.image, now, run.name))
        return directory

    def update(self, run: str, *, more: Sequence[Handle] = (), **changes: Any) -> Run:
        """Change fields of a run, or add handles: of two of an element the later counts.

        Gives the run as it is now.
        """
        with self._transaction() as db:
            row = db.execute("SELECT * FROM run WHERE id = ?", (run,)).fetchone()
            if row is None:
                raise ClusterError(f"no run {run!r} in the record {self._path}")
            known = _from_row(row)
            handles = (*known.handles, *pack(more))
            changed = replace(known, handles=handles, updated=time.time(), **changes)
            db.execute(
                "UPDATE run SET details = ?, state = ?, updated = ? WHERE id = ?",
                (_to_details(changed), changed.state, changed.updated, run),
            )
        return changed

    def runs(self, *, limit: int | None = None) -> list[Run]:
        """The runs, newest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM run ORDER BY created DESC, id LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [_from_row(row) for row in rows]

    def run(self, name: str) -> Run:
        """The run with this id, or the only one whose id starts with it; ClusterError otherwise."""
        escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._transaction() as db:
            rows = db.execute(
                "SELECT * FROM run WHERE id LIKE ? ESCAPE '\\' ORDER BY created DESC",
                (escaped + "%",),
            ).fetchall()
        found = [_from_row(row) for row in rows]
        exact = [run for run in found if run.id == name] or found
        if not name or not found:
            raise ClusterError(
                f"no run {name!r} in this user's record",
                hint="`cxc ps` lists the runs that are there.",
                run=name,
            )
        if len(exact) > 1:
            some = ", ".join(run.id for run in found[:5])
            raise ClusterError(f"{name!r} is the start of {len(found)} runs: {some}")
        return exact[0]

    def remove(self, run: str) -> None:
        """Forget a run; its directory is the caller's to remove first."""
        with self._transaction() as db:
            db.execute("DELETE FROM run WHERE id = ?", (run,))

    def built(self, digest: str) -> bool:
        """Whether this user's record built the image ``digest``."""
        with self._transaction() as db:
            row = db.execute("SELECT 1 FROM built WHERE digest = ?", (digest,)).fetchone()
        return row is not None


def open_record() -> Record:
    """This user's run record."""
    return Record(paths().state)
