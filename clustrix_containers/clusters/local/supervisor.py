"""Runs one attempt's elements and outlives the client: a process in a session of its own.

It holds the attempt's lock, starts containers as far as resources allow, enforces limits, and
appends events to the journal. What it starts dies with it. See :func:`main` for how it is
started; :mod:`.journal` for how others follow it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.containers.container import Container, ContainerSpec, Mount
from clustrix_containers.containers.environment import outer_limit, worker_environment
from clustrix_containers.containers.runtimes import open_runtime
from clustrix_containers.containers.sandbox import limits
from clustrix_containers.storage.locks import hold
from clustrix_containers.worker import contract

from . import journal
from .attempt import LABEL_ATTEMPT, LABEL_ELEMENT, LABEL_RUN, AttemptSpec
from .outcome import CANCELLED, TERMINATED, over_memory, status_of
from .pool import ResourcePool

BOOT = (
    "import sys; sys.path += [p for p in sys.argv[2:] if p not in sys.path];"
    "from clustrix_containers.clusters.local.supervisor import main; main(sys.argv[1])"
)
"""For ``python -I -S -c``: this, the control directory, then the client's ``sys.path``."""

TAKEN = 3
"""Exit code: another supervisor holds the lock, or has run this attempt before."""

SAMPLE_INTERVAL = 0.1
"""Seconds between two samples of memory use where no cgroup limits it."""

DELIVERY = 3600.0
"""Seconds more in which an outcome may reach its store, where a time limit is set."""

CANCEL_INTERVAL = 2.0
"""Seconds between two reads of the cancel requests: a client on another host cannot wake it."""


def main(control: str) -> None:
    """Take the lock, go into the background, run everything, end.

    The caller waits only until the lock is taken: exit code 0, or :data:`TAKEN`.
    """
    directory = Path(control)
    spec = AttemptSpec.read(directory)
    os.umask(0o077)
    lock = hold(directory / journal.LOCK)
    if spec is None or lock is None or journal.has_started(directory):
        sys.exit(TAKEN)
    wake = journal.open_wake(directory)
    writer = journal.Writer(directory)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    with (directory / "supervisor.log").open("ab") as log, Path(os.devnull).open("rb") as null:
        for source, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), number)
    writer.started(os.getpid(), os.uname().nodename)
    Supervisor(spec, writer, wake).run()
    spec.deliver_file.unlink(missing_ok=True)
    writer.ended()
    sys.stdout.flush()
    os._exit(0)


@dataclass(slots=True)
class Running:
    """One element's container. Times are of the monotonic clock."""

    element: int
    container: Container
    cgroup: limits.Cgroup | None
    deadline: float | None
    reason: Status | None = None
    """Set when the supervisor ends it: what it will be reported as."""
    kill_at: float | None = None


@dataclass
class Supervisor:
    """The loop. ``wake`` is the FIFO through which clients wake it."""

    spec: AttemptSpec
    writer: journal.Writer
    wake: int
    running: dict[int, Running] = field(default_factory=dict)
    terminated: bool = False

    def __post_init__(self) -> None:
        spec, container = self.spec, self.spec.container
        self.requests = journal.CancelRequests(spec.control)
        self.runtime = open_runtime(spec.runtime, spec.method)
        self.cgroups = None
        if not self.runtime.enforces_limits and spec.limits != "sample":
            self.cgroups = limits.find()
        limited = self.runtime.enforces_limits or self.cgroups is not None
        self.sampling = container.memory is not None and not limited
        self.signals = self._catch_signals()
        self.next_read = 0.0
        self.pool = ResourcePool(spec.pool, spec.control, container.cpus, container.memory)
        self.next: int | None = None

    def run(self) -> None:
        todo = iter(self.spec.elements)
        more = True
        while more or self.running:
            self._read_requests()
            self._enforce()
            self._collect()
            more = self._fill(todo) if more else False
            if more or self.running:
                self._sleep()

    # --- starting --------------------------------------------------------------------------

    def _fill(self, todo: Iterator[int]) -> bool:
        """Start elements while resources allow; whether there may be more to start."""
        while len(self.running) < self.spec.max_parallel:
            if self.next is None:
                self.next = next(todo, None)
            if self.next is None:
                return False
            if self.terminated:
                self.writer.status(self.next, TERMINATED)
            elif self.next in self.requests:
                self.writer.status(self.next, CANCELLED)
            else:
                if self.pool.retry_at is not None and time.monotonic() < self.pool.retry_at:
                    return True
                cores = self._acquire(self.next)
                if cores is None:
                    return True
                self._start(self.next, cores)
            with contextlib.suppress(OSError):
                self.pool.leave_queue()
            self.next = None
        return True

    def _acquire(self, element: int) -> frozenset[int] | None:
        try:
            return self.pool.acquire(element)
        except OSError as error:
            # A full disk must not end the run: it continues without sharing.
            print(f"the machine's resources cannot be shared: {error}", flush=True)
            self.pool.retry_at = None
            return frozenset(self.pool.machine.cores)

    def _release(self, element: int) -> None:
        with contextlib.suppress(OSError):
            self.pool.release(element)

    def _start(self, element: int, cores: frozenset[int]) -> None:
        spec = self.spec
        try:
            cgroup = self.cgroups and self.cgroups.create(
                f"{spec.tag}.{element}", memory=spec.container.memory, cpus=spec.container.cpus
            )
            # With a quota by the kernel or an engine, the cores need not be fixed.
            quota = self.runtime.enforces_limits or (cgroup is not None and cgroup.cpu is not None)
            confine = partial(_confine, cgroup, frozenset() if quota else cores)
            with spec.log(element).open("ab", buffering=0) as log:
                container = self.runtime.start(self._container(element), log.fileno(), confine)
        except Exception as error:
            # An element that cannot be started must not end the others.
            self._release(element)
            message = f"the container cannot be started: {error}"
            self.writer.status(element, Status(State.FAILED, Cause.REFUSED, None, message))
            return
        limit = outer_limit(spec.timeout, spec.grace + DELIVERY * spec.delivers)
        deadline = None if limit is None else time.monotonic() + limit
        self.running[element] = Running(element, container, cgroup, deadline)
        self.writer.status(element, journal.RUNNING)

    def _container(self, element: int) -> ContainerSpec:
        spec = self.spec
        worker = worker_environment(
            run=spec.run,
            attempt=spec.attempt,
            element=element,
            cpus=spec.container.cpus,
            timeout=spec.timeout,
            grace=spec.grace,
        )
        return replace(
            spec.container,
            env={**spec.container.env, **worker},
            mounts=(*spec.container.mounts, _results(spec, element)),
            scratch=str(spec.control / "scratch" / str(element)),
            labels={LABEL_ATTEMPT: spec.tag, LABEL_RUN: spec.run, LABEL_ELEMENT: str(element)},
        )

    # --- ending ----------------------------------------------------------------------------

    def _read_requests(self) -> None:
        now = time.monotonic()
        if now < self.next_read:
            return
        self.next_read = now + CANCEL_INTERVAL
        self.requests.update()
        for running in self.running.values():
            if running.element in self.requests:
                self._end(running, CANCELLED)
            if self.terminated:
                self._end(running, TERMINATED)

    def _end(self, running: Running, reason: Status, *, now: bool = False) -> None:
        if running.reason is None:
            running.reason = reason
            running.kill_at = time.monotonic() + (0.0 if now else self.spec.grace)
            if not now:
                running.container.terminate()

    def _enforce(self) -> None:
        """End what is over a limit, kill what has not ended in its grace."""
        now = time.monotonic()
        for running in self.running.values():
            if running.deadline is not None and now >= running.deadline:
                running.deadline = None
                message = f"ended at its time limit of {self.spec.timeout:g} s"
                over = Status(State.FAILED, Cause.TIME_LIMIT, 124, message)
                self._end(running, over, now=True)
            if self.sampling:
                self._sample(running)
            if running.kill_at is not None and now >= running.kill_at:
                running.kill_at = now + 1.0
                running.container.kill()

    def _sample(self, running: Running) -> None:
        limit, pid = self.spec.container.memory, running.container.pid
        if limit is None or pid is None:
            return
        used = limits.memory_in_use(pid, limit)
        if used > limit:
            self._end(running, over_memory(limit, used), now=True)
            running.container.kill()

    def _collect(self) -> None:
        for element, running in list(self.running.items()):
            code = running.container.ended()
            if code is None:
                continue
            status = self._status(running, code)
            running.container.close()
            if running.cgroup:
                running.cgroup.remove()
            del self.running[element]
            if self.spec.delivers:
                # What has arrived in the store is not kept here as well.
                for path in self.spec.results(element).glob("*.result"):
                    path.unlink(missing_ok=True)
            self._release(element)
            self.writer.status(element, status)

    def _status(self, running: Running, code: int) -> Status:
        """The status of an element whose container has ended."""
        if code == 0:
            # It may have been done before a request or a limit reached it.
            return journal.SUCCEEDED
        if running.reason is not None:
            return replace(running.reason, exit_code=code)
        cgroup, limit = running.cgroup, self.spec.container.memory
        if limit is not None and cgroup is not None and cgroup.oom_kills():
            return over_memory(limit, cgroup.peak(), code)
        if limit is not None and running.container.out_of_memory():
            return over_memory(limit, 0, code)
        return status_of(self.spec, running.element, code)

    # --- waiting ---------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # It arrives through the wake-up descriptor, but only where it has a handler.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return reader

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True
        self.next_read = 0.0

    def _sleep(self) -> None:
        """Until something happens, or is due."""
        times = [self.next_read]
        if self.pool.retry_at is not None and len(self.running) < self.spec.max_parallel:
            times.append(self.pool.retry_at)
        for running in self.running.values():
            times += [at for at in (running.deadline, running.kill_at) if at is not None]
        wait = max(0.0, min(times) - time.monotonic())
        if self.sampling:
            wait = min(wait, SAMPLE_INTERVAL)
        ready, _, _ = select.select([self.wake, self.signals], [], [], wait)
        if self.wake in ready:
            self.next_read = 0.0
            self.pool.retry_now()
        for file in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(file, 4096)


def _results(spec: AttemptSpec, element: int) -> Mount:
    """The mount of the element's results directory, which belongs to the user of the container."""
    place = spec.results(element)
    if spec.delivers:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = (spec.directory / "results").stat()
        os.chown(place, owner.st_uid, owner.st_gid)
    return Mount(str(place), contract.RESULTS, writable=True)


def _confine(cgroup: limits.Cgroup | None, cores: frozenset[int]) -> None:
    """What the new process does before it becomes the container."""
    if cgroup:
        cgroup.join()
    if cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
