"""Runs one attempt's elements and outlives the client: a process with a session of its own.

It holds the attempt's lock, starts containers as far as there is room, enforces limits, and
appends what happens to the journal. What it starts dies with it. See :func:`main` for how it
is started; :mod:`.journal` for how others see what it does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.containers import cgroup
from clustrix_containers.containers.process import Container, Runtime
from clustrix_containers.worker import contract

from . import journal
from .outcome import ENDED, cancelled, explain, not_started, over_memory, over_time
from .plan import Plan
from .pool import Room

BOOT = (
    "import sys; sys.path += [p for p in sys.argv[2:] if p not in sys.path];"
    "from clustrix_containers.clusters.local.supervisor import main; main(sys.argv[1])"
)
"""For ``python -I -S -c``: this, the control directory, then the client's ``sys.path``."""

TAKEN = 3
"""Exit code: another supervisor holds the lock, or has been here before."""

SAMPLE = 0.1
"""Seconds between two looks at memory where no cgroup does it."""

LOOK = 2.0
"""Seconds between two looks for what a client on another host wants cancelled."""

MARGIN = 5.0
"""Seconds after the worker's own time limit and grace before the container is ended from here."""


def main(control: str) -> None:
    """Take the lock, go into the background, run everything, end.

    The caller waits only until the lock is taken: exit code 0, or :data:`TAKEN`.
    """
    directory = Path(control)
    plan = Plan.from_json((directory / "plan.json").read_bytes())
    os.umask(0o077)
    lock = journal.take_lock(directory)
    if lock is None or journal.has_started(directory):
        sys.exit(TAKEN)
    wake = journal.open_wake(directory)
    writer = journal.Writer(directory)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    _redirect(directory / "supervisor.log")
    writer.note(event="start", pid=os.getpid(), host=os.uname().nodename)
    Supervisor(plan, writer, wake).run()
    writer.note(event="end")
    sys.stdout.flush()
    os._exit(0)


def _redirect(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, number in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, number)
    os.close(file)
    os.close(null)


@dataclass(slots=True)
class Running:
    """One element's container. Times are of the monotonic clock, ``peak`` is in bytes."""

    element: int
    slot: int
    container: Container
    group: cgroup.Group | None
    deadline: float | None
    peak: int = 0
    why: Status | None = None
    """Set when it is being ended from here: what it will be reported as."""
    kill_at: float | None = None


@dataclass
class Supervisor:
    """The loop. ``wake`` is the FIFO through which clients make it look."""

    plan: Plan
    writer: journal.Writer
    wake: int
    running: dict[int, Running] = field(default_factory=dict)
    told_to_end: bool = False

    def __post_init__(self) -> None:
        self.requests = journal.Requests(self.plan.control)
        self.runtime = _open_runtime(self.plan)
        self.groups = None
        if not self.runtime.limits and self.plan.limits != "sample":
            self.groups = cgroup.find()
        self.sampling = (
            self.plan.memory is not None and self.groups is None and not self.runtime.limits
        )
        self.free = list(range(self.plan.max_parallel - 1, -1, -1))
        self.signals = self._catch_signals()
        self.next_look = 0.0
        self.room = Room(self.plan.room, self.plan.control, self.plan.cpus, self.plan.memory)
        self.next: int | None = None

    def run(self) -> None:
        todo = self.plan.ids()
        more = True
        while more or self.running:
            self._read_requests()
            self._end_what_is_due()
            self._collect()
            more = self._fill(todo) if more else False
            if more or self.running:
                self._sleep()

    # --- starting --------------------------------------------------------------------------

    def _fill(self, todo: Iterator[int]) -> bool:
        """Start elements while there is room; whether there may be more to start."""
        while self.free:
            if self.next is None:
                self.next = next(todo, None)
            if self.next is None:
                return False
            if self.told_to_end:
                self._report(self.next, ENDED)
            elif self.next in self.requests:
                self._report(self.next, cancelled())
            else:
                if self.room.look_at is not None and time.monotonic() < self.room.look_at:
                    return True
                cores = self._take_room(self.next)
                if cores is None:
                    return True
                self._start(self.next, cores)
            with contextlib.suppress(OSError):
                self.room.leave_line()
            self.next = None
        return True

    def _take_room(self, element: int) -> frozenset[int] | None:
        try:
            return self.room.take(element)
        except OSError as error:
            # A full disk must not end the run: it goes on without regard to others.
            print(f"the machine's room cannot be shared: {error}", flush=True)
            self.room.look_at = None
            return frozenset(self.room.machine.cores)

    def _give_room_back(self, element: int) -> None:
        with contextlib.suppress(OSError):
            self.room.give_back(element)

    def _start(self, element: int, cores: frozenset[int]) -> None:
        plan, slot = self.plan, self.free.pop()
        try:
            group = self._group(element)
            with _log(plan.log(element)) as output:
                container = self.runtime.start(
                    plan, element, self._env(element), output, self._before(cores, group)
                )
        except Exception as error:
            # One element that cannot be started must not take the others along.
            self.free.append(slot)
            self._give_room_back(element)
            self._report(element, Status(State.FAILED, Cause.REFUSED, None, not_started(error)))
            return
        limit = plan.timeout
        deadline = None if limit is None else time.monotonic() + limit + plan.grace + MARGIN
        self.running[element] = Running(element, slot, container, group, deadline)
        self.writer.status(element, journal.RUNNING)

    def _group(self, element: int) -> cgroup.Group | None:
        if self.groups is None:
            return None
        name = f"{self.plan.tag}.{element}"
        return cgroup.create(self.groups, name, memory=self.plan.memory, cpus=self.plan.cpus)

    def _before(self, cores: frozenset[int], group: cgroup.Group | None) -> _Before:
        """With a quota by the kernel, or by an engine, the cores need not be fixed."""
        fixed = (group is None or group.cpu is None) and not self.runtime.limits
        return _Before(group, cores if fixed else frozenset())

    def _env(self, element: int) -> dict[str, str]:
        plan = self.plan
        env = {
            **plan.env,
            contract.ENV_RUN: plan.run,
            contract.ENV_ELEMENT: str(element),
            contract.ENV_ATTEMPT: str(plan.attempt),
            contract.ENV_CPUS: f"{plan.cpus:g}",
            contract.ENV_GRACE: f"{plan.grace:g}",
        }
        if plan.timeout is not None:
            env[contract.ENV_TIMEOUT] = f"{plan.timeout:g}"
        return env

    # --- ending ----------------------------------------------------------------------------

    def _read_requests(self) -> None:
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK
        if self.requests.update():
            for running in self.running.values():
                if running.element in self.requests:
                    self._end(running, cancelled())
        if self.told_to_end:
            for running in self.running.values():
                self._end(running, ENDED)

    def _end(self, running: Running, why: Status, *, at_once: bool = False) -> None:
        if running.why is None:
            running.why = why
            running.kill_at = time.monotonic() + (0.0 if at_once else self.plan.grace)
            if not at_once:
                running.container.terminate()

    def _end_what_is_due(self) -> None:
        now = time.monotonic()
        for running in self.running.values():
            if running.deadline is not None and now >= running.deadline:
                running.deadline = None
                self._end(running, over_time(self.plan), at_once=True)
            if self.sampling:
                self._sample(running)
            if running.kill_at is not None and now >= running.kill_at:
                running.kill_at = now + 1.0
                running.container.kill()

    def _sample(self, running: Running) -> None:
        from clustrix_containers.containers import sampling

        limit, pid = self.plan.memory, running.container.pid
        if limit is None or pid is None:
            return
        held = sampling.held(pid, limit)
        running.peak = max(running.peak, held)
        if held > limit:
            self._end(running, over_memory(limit, held), at_once=True)
            running.container.kill()

    def _collect(self) -> None:
        for element, running in list(self.running.items()):
            code = running.container.ended()
            if code is None:
                continue
            status = self._judge(running, code)
            running.container.close()
            if running.group:
                running.group.remove()
            del self.running[element]
            self._give_room_back(element)
            self.free.append(running.slot)
            self._report(element, status)

    def _judge(self, running: Running, code: int) -> Status:
        """What became of an element whose container has ended."""
        if code == 0:
            # It may have been done before a request or a limit reached it.
            return journal.SUCCEEDED
        if running.why is not None:
            return Status(running.why.state, running.why.cause, code, running.why.message)
        group, limit = running.group, self.plan.memory
        if limit is not None and group is not None and group.oom_kills():
            return over_memory(limit, group.peak(), code)
        if limit is not None and running.container.out_of_memory():
            return over_memory(limit, 0, code)
        return explain(self.plan, running.element, code)

    def _report(self, element: int, status: Status) -> None:
        self.writer.status(element, status)

    # --- waiting ---------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return reader

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        self.told_to_end = True
        self.next_look = 0.0

    def _sleep(self) -> None:
        """Until something happens, or is due."""
        times = [self.next_look]
        if self.room.look_at is not None and self.free:
            times.append(self.room.look_at)
        for running in self.running.values():
            times += [at for at in (running.deadline, running.kill_at) if at is not None]
        wait = max(0.0, min(times) - time.monotonic())
        if self.sampling:
            wait = min(wait, SAMPLE)
        ready, _, _ = select.select([self.wake, self.signals], [], [], wait)
        if self.wake in ready:
            self.next_look = 0.0
            self.room.look_now()
        for file in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(file, 4096)


class _Before:
    """What the new process does before it becomes the container."""

    def __init__(self, group: cgroup.Group | None, cores: frozenset[int]) -> None:
        self.group = group
        self.cores = cores

    def __call__(self) -> None:
        if self.group:
            self.group.join()
        if self.cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.cores)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Its arrival is seen through the wake-up file."""


def _open_runtime(plan: Plan) -> Runtime:
    from clustrix_containers.containers.runtimes import open_runtime

    return open_runtime(plan.runtime, plan.means)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)
