"""One service in the background: started, waited for, and ended with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


class StartError(Exception):
    """A service that did not become ready; the message ends with its log's last lines."""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true before the deadline; asked every 10 ms, then every 50."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        if waited > seconds:
            return False
        time.sleep(0.01 if waited < 1 else 0.05)
    return True


@dataclass(frozen=True)
class Daemon:
    """A service whose pid and log lie in ``directory``, so that another process can end it.

    ``ready``: whether it answers. ``with_parent`` ends the service when the thread
    that started it ends, however that happens: a killed test run leaves nothing behind.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """How variables of this process begin that it is not to see."""
    with_parent: bool = False
    death_signal: str = "TERM"
    """What ``with_parent`` sends."""

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    def _inherited(self) -> dict[str, str]:
        return {
            name: value for name, value in os.environ.items() if not name.startswith(self.without)
        }

    def start(self, seconds: float = 30) -> None:
        """Start it and wait until it answers; :class:`StartError` with its log if it does not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = (
            ("setpriv", "--pdeathsig", self.death_signal, *self.command)
            if self.with_parent
            else self.command
        )
        with self.log.open("wb") as log:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.directory,
                    env={**self._inherited(), **self.environment},
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise StartError(
                    f"{error.filename} is not installed: run 'make setup-system' as root,"
                    " or leave this part out by name (--exclude)"
                ) from error
        self._pid_file.write_text(f"{process.pid} {_started(process.pid)}")
        wait_until(lambda: process.poll() is not None or self.ready(), seconds)
        if process.poll() is not None:
            self._pid_file.unlink()
            raise StartError(f"{self.name} ended with {process.returncode}:\n{self.logs()}")
        if not self.ready():
            self.stop()
            raise StartError(f"{self.name} gave no answer in {seconds} s:\n{self.logs()}")
        # It outlives this object on purpose, of which Popen would warn.
        process.returncode = 0

    def running(self) -> bool:
        """Whether the process that was started is still there (not merely one with its number)."""
        pid, started = self._recorded()
        return bool(pid) and _started(pid) == started

    @property
    def pid(self) -> int:
        """The process that was started; 0 if none was, or it has been stopped."""
        return self._recorded()[0]

    def command_name(self) -> str:
        """What the process runs now, as the kernel shortens it."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().rstrip("\n")
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def stop(self, seconds: float = 20) -> None:
        """Ask it to end, then end it and everything in its session; fine if it is not running."""
        pid, _ = self._recorded()
        if self.running():
            os.kill(pid, signal.SIGTERM)
            if not wait_until(lambda: not self.running(), seconds):
                os.killpg(pid, signal.SIGKILL)
                wait_until(lambda: not self.running(), 5)
            with contextlib.suppress(ChildProcessError):  # another process may have started it
                os.waitpid(pid, 0)
        self._pid_file.unlink(missing_ok=True)

    def logs(self, lines: int = 40) -> str:
        """The last lines that the service wrote."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _recorded(self) -> tuple[int, str]:
        try:
            pid, started = self._pid_file.read_text().split()
        except FileNotFoundError:
            return 0, ""
        return int(pid), started


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: with the number it names one process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
