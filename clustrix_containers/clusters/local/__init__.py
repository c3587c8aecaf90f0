"""The local target: a real container of the image on this machine.

The client prepares (unpacks the image, writes the plan) and starts a *supervisor*, which
runs the elements and outlives it. Everything that is known lies in the run's directory:
``local/ATTEMPT/`` (see :mod:`.journal`), ``logs/ELEMENT.ATTEMPT.log``, ``results/``.
Ids read ``DIRECTORY#ATTEMPT.ELEMENT``, so any process can use them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import Tell
from clustrix_containers.clusters.task import Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.remote import shell

from . import journal
from .plan import Plan, control, log

START_TIMEOUT = 60.0


class LocalCluster:
    """Runs tasks on this machine.

    ``runtime``: ``auto`` (the first that works of docker, apptainer, sandbox), or one by name;
    ``bubblewrap`` or ``namespaces`` for one way of the sandbox's.
    ``cache``: where unpacked images lie (the user's cache directory if not given).
    ``max_parallel``: elements at once (as many as fit into cores and memory if not given).
    ``network``: Docker's network mode. ``limits``: ``auto``, or ``sample`` to leave cgroups
    alone. ``grace``: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        *,
        runtime: str = "auto",
        cache: str | Path | None = None,
        max_parallel: int | None = None,
        network: str | None = None,
        limits: str = "auto",
        grace: float = 5.0,
    ) -> None:
        if limits not in ("auto", "sample"):
            raise ClusterError(f"limits is {limits!r}", hint="It is auto or sample.")
        if max_parallel is not None and max_parallel < 1:
            raise ClusterError(f"max_parallel is {max_parallel}: at least 1 element must run")
        self.runtime = runtime
        self.cache = Path(cache).expanduser() if cache is not None else None
        self.max_parallel = max_parallel
        self.network = network
        self.limits = limits
        self.grace = grace
        self._readers: dict[Path, journal.Reader] = {}

    poll_interval = (0.01, 0.25)
    pulls = False

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """The runtimes; one that is not there is all right as long as the chosen one is."""
        from clustrix_containers.containers.runtimes import available, choose

        try:
            chosen = choose(self.runtime).runtime
        except ClusterError as error:
            return [("runtime", False, str(error))]
        found = available()
        return [
            ("runtime", True, chosen),
            *(
                (item.runtime, True, item.reason if item.ok else f"no: {item.reason}")
                for item in found
            ),
        ]

    def describe(self) -> str:
        """Which runtime is taken here, and why not those before it. One sentence each."""
        from clustrix_containers.containers.runtimes import ORDER, check, choose

        chosen = choose(self.runtime)
        lines = [f"{chosen.runtime}: {chosen.reason}"]
        if self.runtime == "auto":
            before = ORDER[: ORDER.index(chosen.runtime)]
            lines += [f"not {name}: {check(name).reason}" for name in before]
        return "\n".join(lines)

    def choices(self, task: Task) -> str:  # noqa: ARG002
        """Nothing that changes from task to task."""
        return ""

    def preview(self, task: Task) -> str:
        """ClusterError: nothing is made here that a person could write."""
        raise ClusterError(
            f"{task.name} would run on this machine: a dry run has nothing to show",
            hint="Name a target that has manifests (--on).",
        )

    def submit(self, task: Task) -> Sequence[str]:
        """Start the task's supervisor, unless this run and attempt has had one."""
        if task.retries:
            raise ClusterError(
                "the local target does not run a call again that failed",
                hint="Leave retries out, or submit to a target that has them (kubernetes).",
            )
        directory = task.directory.resolve()
        place = control(directory, task.attempt)
        known = _read_plan(place)
        if known is None:
            from .staging import prepare

            known = prepare(self, task, directory)
        elif (known.run, known.image, list(known.elements)) != (
            task.run,
            task.image,
            list(task.elements),
        ):
            raise ClusterError(
                f"attempt {task.attempt} of the run {task.run} was submitted with another image"
                " or other elements",
                hint="Submit it as another attempt.",
            )
        reader = self._reader(place)
        reader.update()
        if reader.started is None:
            _start_supervisor(place)
        return [_id(directory, task.attempt, element) for element in task.elements]

    def states(self, ids: Sequence[str]) -> Mapping[str, Status]:
        """Reads only what the supervisors have written since the last time."""
        checked: dict[Path, journal.Reader] = {}
        out = {}
        for name in ids:
            directory, attempt, element = _parse(name)
            place = control(directory, attempt)
            reader = checked.get(place)
            if reader is None:
                reader = checked[place] = self._reader(place)
                self._refresh(reader)
            out[name] = self._status(reader, element)
        return out

    def subscribe(self, run: str, tell: Tell) -> Callable[[], None]:  # noqa: ARG002
        """Asking costs next to nothing here."""
        return lambda: None

    def fetch(self, id: str, directory: Path, image: str) -> None:  # noqa: A002
        """They are there: the directory is mounted."""

    def find(self, run: str) -> None:  # noqa: ARG002
        """Nothing is kept but in the user's own directories."""
        return

    def logs(self, id: str, *, follow: bool = False) -> Iterator[bytes]:  # noqa: A002
        """What the element has printed, as pieces of at most 64 KiB."""
        directory, attempt, element = _parse(id)
        path = log(directory, element, attempt)
        offset, wait = 0, 0.02
        while True:
            over = not follow or self.states([id])[id].state.terminal
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(offset)
                while data := file.read(1 << 16):
                    offset += len(data)
                    wait = 0.02
                    yield data
            if over:
                return
            time.sleep(wait)
            wait = min(0.5, wait * 1.5)

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask the supervisors; returns before the containers have ended."""
        by_place: dict[Path, list[int]] = {}
        for name in ids:
            directory, attempt, element = _parse(name)
            by_place.setdefault(control(directory, attempt), []).append(element)
        for place, elements in by_place.items():
            plan = _read_plan(place)
            if plan is None:
                raise ClusterError(f"there is no run in {place.parent.parent}")
            everything = len(set(elements)) == len(plan.elements)
            journal.request_cancel(place, None if everything else elements)

    def tidy(self, older_than: float) -> None:
        """Remove unpacked images that were not used lately."""
        from clustrix_containers.containers import rootfs

        from .staging import cache_of

        rootfs.prune(cache_of(self), older_than)

    def _reader(self, place: Path) -> journal.Reader:
        return self._readers.setdefault(place, journal.Reader(place))

    def _refresh(self, reader: journal.Reader) -> None:
        reader.update()
        if reader.started is None or reader.ended or journal.is_locked(reader.control):
            return
        # It may have written its last lines between the two looks.
        reader.update()
        if not reader.ended:
            from .cleanup import clean_up

            clean_up(reader)

    def _status(self, reader: journal.Reader, element: int) -> Status:
        status = reader.statuses.get(element, journal.PENDING)
        if status.state.terminal:
            return status
        if reader.started is None and _abandoned(reader.control):
            return _NOT_STARTED
        if not reader.control.is_dir():
            return Status(State.FAILED, Cause.DIED, None, "the run's directory is gone")
        if reader.started is None or reader.ended or journal.is_locked(reader.control):
            return status
        from .cleanup import orphaned

        reader.statuses[element] = orphaned(reader, element, status)
        return reader.statuses[element]


_NOT_STARTED = Status(
    State.PENDING, message="the client ended before the run was started: submit it again"
)


def _abandoned(place: Path) -> bool:
    """Whether a plan has been there for long, and nobody has begun with it."""
    try:
        age = time.time() - (place / "plan.json").stat().st_mtime
    except FileNotFoundError:
        return False
    return age > START_TIMEOUT and not journal.has_started(place)


def _id(directory: Path, attempt: int, element: int) -> str:
    return f"{directory}#{attempt}.{element}"


def _parse(name: str) -> tuple[Path, int, int]:
    directory, _, numbers = name.rpartition("#")
    attempt, _, element = numbers.partition(".")
    if not (directory and attempt.isdigit() and element.isdigit()):
        raise ClusterError(f"not an id of the local target: {name!r}")
    return Path(directory), int(attempt), int(element)


def _read_plan(place: Path) -> Plan | None:
    try:
        return Plan.from_json((place / "plan.json").read_bytes())
    except FileNotFoundError:
        return None


def _start_supervisor(place: Path) -> None:
    """Returns when a supervisor holds the lock: the one started here or another."""
    from .supervisor import BOOT, TAKEN

    path = [str(Path(entry or ".").resolve()) for entry in sys.path]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    done = shell.run(shell.python(BOOT, str(place), *path), timeout=START_TIMEOUT, env=environment)
    if done.code not in (0, TAKEN):
        raise ClusterError(
            f"the run's supervisor cannot be started: {done.complaint}",
            stderr=done.stderr.decode(errors="replace"),
        )
