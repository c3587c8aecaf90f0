"""The local target: a real container of the image on this machine.

The client prepares (unpacks the image, writes the attempt's specification) and starts a
*supervisor*, which runs the elements and outlives it. All state is in the run's directory:
``local/ATTEMPT/`` (see :mod:`.journal`), ``logs/ELEMENT.ATTEMPT.log``, ``results/``. So a
handle's ``id`` is that directory, and any process can use it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustrix_containers.api.status import State, Status
from clustrix_containers.clusters import Notify
from clustrix_containers.clusters.task import Capabilities, Fetched, Handle, Task
from clustrix_containers.errors import ClusterError
from clustrix_containers.remote import shell
from clustrix_containers.storage import untrusted
from clustrix_containers.storage.locks import is_held, locked

from . import journal
from .attempt import MESSAGE, AttemptSpec, control_directory, delivery_directory, log_file

if TYPE_CHECKING:
    from clustrix_containers.containers.runtimes import Availability
    from clustrix_containers.oci.model import Image
    from clustrix_containers.remote.progress import Progress
    from clustrix_containers.results.outcome import Expected
    from clustrix_containers.results.stores import ResultStore

START_TIMEOUT = 60.0

_AT_THE_CALL: Mapping[str, tuple[Any, str]] = {
    "network": (str, "a network mode of Docker"),
    "grace": (int | float, "seconds between SIGTERM and SIGKILL"),
}
"""The options at the call: their types, and what they are."""


@dataclass(kw_only=True, eq=False)
class LocalCluster:
    """Runs tasks on this machine.

    ``runtime``: ``auto`` (the first that works of docker, apptainer, sandbox), or one by name;
    ``bubblewrap`` or ``namespaces`` for one method of the sandbox.
    ``cache``: where images are unpacked (default: the user's cache directory).
    ``max_parallel``: elements at once (default: as many as fit into cores and memory).
    ``network``: Docker's network mode. ``limits``: ``auto``, or ``sample`` to use no cgroups.
    ``grace``: seconds between SIGTERM and SIGKILL. ``results``: ``auto`` (the run's directory), or
    a store for those that do not fit into a message of the worker.

    Options at the call: ``network`` and ``grace``.
    """

    runtime: str = "auto"
    cache: str | Path | None = None
    max_parallel: int | None = None
    network: str | None = None
    limits: str = "auto"
    grace: float = 5.0
    results: str | Mapping[str, Any] = "auto"

    def __post_init__(self) -> None:
        if self.limits not in ("auto", "sample"):
            raise ClusterError(f"invalid limits: {self.limits!r}", hint="Expected auto or sample.")
        if self.max_parallel is not None and self.max_parallel < 1:
            raise ClusterError(f"max_parallel must be at least 1, not {self.max_parallel}")
        self.store: ResultStore | None = None
        if self.results != "auto":
            from clustrix_containers.results.stores import parse_results

            self.store = parse_results(self.results, own=("auto",))
        # Used by several threads at once: only with operations that are atomic.
        self._readers: dict[Path, journal.Reader] = {}

    poll_interval = (0.01, 0.25)

    @cached_property
    def chosen(self) -> Availability:
        """The runtime that is used. ``ClusterError`` if it does not work, which is not cached."""
        from clustrix_containers.containers.runtimes import choose

        return choose(self.runtime)

    @property
    def unpacked(self) -> Path:
        """The directory of unpacked images."""
        from clustrix_containers.config.paths import paths

        return Path(self.cache or paths().cache).expanduser().resolve()

    @property
    def capabilities(self) -> Capabilities:
        """Never raises: runs can be watched where their runtime does not work (any more)."""
        try:
            gpus = self.chosen.gpus
        except ClusterError:
            gpus = True
        return Capabilities(
            images="registry" if self._refers_to_image else "layout",
            gpus=gpus,
            results=("s3", "registry"),
        )

    @property
    def _refers_to_image(self) -> bool:
        """Whether results go to a registry, and refer to their image there."""
        return self.store is not None and self.store.kind == "registry"

    def check_options(self, options: Mapping[str, Any]) -> None:
        """``ClusterError`` for a wrong option, or if no runtime works here."""
        runtime = self.chosen.runtime
        for name, value in options.items():
            kind, expected = _AT_THE_CALL.get(name, (None, f"one of {', '.join(_AT_THE_CALL)}"))
            if kind is None:
                problem = f"the local target has no option {name!r} at the call"
            elif not isinstance(value, kind) or (name == "grace" and value < 0):
                problem = f"invalid {name}: {value!r}"
            elif name == "network" and runtime != "docker":
                problem, expected = f"the {runtime} runtime has no network modes", "runtime docker"
            else:
                continue
            raise ClusterError(problem, hint=f"Expected {expected}.", option=name)

    def check(self) -> Sequence[tuple[str, bool, str]]:
        """The runtimes; one that is missing is no problem as long as the chosen one works."""
        from clustrix_containers.containers.runtimes import ORDER, check

        try:
            chosen = self.chosen.runtime
        except ClusterError as error:
            return [("runtime", False, str(error))]
        found = map(check, ORDER)
        return [
            ("runtime", True, chosen),
            *((it.runtime, True, it.reason if it.ok else f"no: {it.reason}") for it in found),
            *((("results", True, self.store.describe()),) if self.store else ()),
        ]

    def stage(self, image: Image, *, repository: str | None, progress: Progress) -> str:
        """Store the image in this user's layout; also in the registry that its results go to."""
        from clustrix_containers.clusters.staging import to_layout, to_registry

        reference = to_layout(image)
        if self._refers_to_image:
            assert repository is not None  # capabilities.images is registry
            reference = to_registry(image, repository, progress=progress)
        return reference

    def describe(self, task: Task) -> str:  # noqa: ARG002
        """Which runtime is used here, why not those before it, where results go. One line each."""
        return self._description

    @cached_property
    def _description(self) -> str:
        from clustrix_containers.containers.runtimes import ORDER, check

        chosen = self.chosen
        before = ORDER[: ORDER.index(chosen.runtime)] if self.runtime == "auto" else ()
        reasons = [f"not {name}: {check(name).reason}" for name in before]
        results = [f"results: {self.store.describe()}"] if self.store else []
        return "\n".join([f"{chosen.runtime}: {chosen.reason}", *reasons, *results])

    def preview(self, task: Task) -> str:
        """ClusterError: nothing that a person could write is created here."""
        raise ClusterError(
            f"{task.name} would run on this machine: a dry run has nothing to show",
            hint="Name a target that has manifests (--on).",
        )

    def submit(self, task: Task) -> Sequence[Handle]:
        """Start the attempt's supervisor, unless there has been one."""
        directory = task.directory.resolve()
        control = control_directory(directory, task.attempt)
        with locked(directory / "local" / "lock"):
            spec = AttemptSpec.read(control)
            if spec is None:
                from .staging import prepare

                prepare(self, task, directory, self.chosen)
            elif (spec.run, spec.image, list(spec.elements)) != (
                task.run,
                task.image,
                list(task.elements),
            ):
                raise ClusterError(
                    f"attempt {task.attempt} of the run {task.run} was submitted with another"
                    " image or other elements",
                    hint="Submit it as another attempt.",
                )
            if not journal.has_started(control):
                _start_supervisor(control)
        return tuple(
            Handle(task.run, task.attempt, element, str(directory)) for element in task.elements
        )

    def states(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        """Reads only what the supervisors have written since the last call."""
        attempts = {key: self._statuses(*key) for key in {(it.id, it.attempt) for it in handles}}
        return {it: attempts[it.id, it.attempt](it.element) for it in handles}

    def subscribe(self, run: str, notify: Notify) -> Callable[[], None]:  # noqa: ARG002
        """Does nothing: polling is cheap here."""
        return lambda: None

    def fetch(self, task: Task, handles: Sequence[Handle]) -> Mapping[Handle, Fetched]:
        """Without a store the directory is shared, and a mark is there before its container ends."""
        if self.store is None:
            return dict.fromkeys(handles, Fetched(grace=0.0))
        from clustrix_containers.clusters.fetching import fetch_each

        return fetch_each(partial(_fetch, self.store), task, handles)

    def find(self, run: str) -> None:
        """Nothing is kept outside of the user's own directories."""

    def logs(
        self, handles: Sequence[Handle], *, follow: bool = False
    ) -> Iterator[tuple[Handle, bytes]]:
        """What the elements printed, in pieces of at most 64 KiB."""
        for handle in handles:
            for piece in self._log(handle, follow):
                yield handle, piece

    def cancel(self, handles: Sequence[Handle]) -> None:
        """Ask the supervisors; returns before the containers have ended."""
        attempts: dict[tuple[str, int], set[int]] = {}
        for handle in handles:
            attempts.setdefault((handle.id, handle.attempt), set()).add(handle.element)
        for (directory, attempt), elements in attempts.items():
            control = control_directory(Path(directory), attempt)
            spec = AttemptSpec.read(control)
            if spec is not None:
                everything = len(elements) == len(spec.elements)
                journal.request_cancel(control, None if everything else elements)

    def prune_cache(self, older_than: float) -> None:
        """Remove unpacked images that were not used lately."""
        from clustrix_containers.containers.sandbox import rootfs

        rootfs.prune(self.unpacked, older_than)

    def _log(self, handle: Handle, follow: bool) -> Iterator[bytes]:
        path = log_file(Path(handle.id), handle.attempt, handle.element)
        offset, wait = 0, 0.02
        while True:
            state = self.states([handle])[handle].state if follow else State.SUCCEEDED
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(offset)
                while data := file.read(1 << 16):
                    offset += len(data)
                    wait = 0.02
                    yield data
            if state.terminal or state is State.ABSENT:
                return
            time.sleep(wait)
            wait = min(0.5, wait * 1.5)

    def _statuses(self, directory: str, attempt: int) -> Callable[[int], Status]:
        """The current status of each element of an attempt."""
        control = control_directory(Path(directory), attempt)
        reader = self._readers.setdefault(control, journal.Reader(control))
        reader.update()
        alive = reader.ended or is_held(control / journal.LOCK)
        if not alive:
            # It may have written its last lines between the two looks.
            reader.update()
        if reader.ended:
            # Nothing more is to be read; this object may live for long.
            self._readers.pop(control, None)
        elif not alive:
            return _abandoned(reader)
        return lambda element: reader.statuses.get(element, journal.PENDING)


def _fetch(store: ResultStore, task: Task, handle: Handle, expected: Expected) -> Fetched:
    """What the worker's message has of the outcome, and what it names in the store."""
    from clustrix_containers.results import delivery
    from clustrix_containers.results.stores import check_kind
    from clustrix_containers.worker.contract import MESSAGE_LIMIT

    place = delivery_directory(Path(handle.id), handle.attempt, handle.element)
    message = None
    with contextlib.suppress(FileNotFoundError):  # it was killed before it had written one
        text = untrusted.read(place / MESSAGE, MESSAGE_LIMIT).decode("utf-8", "replace")
        message = delivery.read_outcome(text, expected)
    if isinstance(message, delivery.Inline):
        delivery.put(expected, message)
    else:
        check_kind(store, expected, message)
        store.fetch(expected, message, task.image)
    return Fetched(grace=0.0)


def _missing(control: Path) -> Status:
    """The status of an element of which no supervisor has written anything."""
    if not control.is_dir():
        return Status(State.ABSENT, message="the run's directory no longer exists")
    try:
        age = time.time() - (control / "attempt.json").stat().st_mtime
    except FileNotFoundError:
        return journal.PENDING
    if age < START_TIMEOUT or journal.has_started(control):
        return journal.PENDING
    return Status(State.PENDING, message="its client died before it was started: submit it again")


def _abandoned(reader: journal.Reader) -> Callable[[int], Status]:
    """The statuses of elements without a living supervisor; removes what a dead one left behind."""
    from .outcome import clean_up, orphaned

    spec = AttemptSpec.read(reader.control) if reader.started else None
    missing = _missing(reader.control)
    if spec is not None:
        clean_up(spec)

    def status(element: int) -> Status:
        known = reader.statuses.get(element)
        if known is not None and known.state.terminal:
            return known
        if spec is None:
            return missing
        reader.statuses[element] = orphaned(spec, reader, element)
        return reader.statuses[element]

    return status


def _start_supervisor(control: Path) -> None:
    """Returns when a supervisor holds the lock: the one started here or another."""
    from .supervisor import BOOT, TAKEN

    path = [str(Path(entry or ".").resolve()) for entry in sys.path]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    command = shell.python(BOOT, str(control), *path)
    done = shell.run(command, timeout=START_TIMEOUT, env=environment)
    if done.code not in (0, TAKEN):
        raise ClusterError(
            f"the run's supervisor cannot be started: {done.complaint}",
            stderr=done.stderr.decode(errors="replace"),
        )
