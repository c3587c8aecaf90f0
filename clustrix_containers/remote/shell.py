"""Programs on this machine: the one module that starts them.

A missing executable and a command that exceeds its timeout are ClusterErrors.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from clustrix_containers.errors import ClusterError

if TYPE_CHECKING:
    import subprocess


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has exited; ``code`` is negative if a signal ended it."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        """The last line of its standard error, else its exit code."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


def run(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Completed:
    """Run a command to its end, whatever its exit code.

    ``timeout`` in seconds; ``env`` replaces the environment. ``ClusterError`` if the program is
    missing, may not be run, or does not end in time.
    """
    import subprocess

    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout, env=env, check=False
        )
    except OSError as error:
        raise _not_started(argv[0], error) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{argv[0]} did not end within {timeout:g} s") from error
    return Completed(done.returncode, done.stdout, done.stderr)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output: int,
    before_exec: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command in a new session; ``output`` gets its standard output and error.

    ``before_exec`` runs in the new process; only a program without threads may use it.
    """
    import subprocess

    try:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=before_exec,
        )
    except OSError as error:
        raise _not_started(argv[0], error) from error


def fork(target: Callable[[], NoReturn]) -> int:
    """Fork a process that runs ``target``, which never returns; its process id.

    Only a program without threads may do this.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        target()
    finally:
        os._exit(126)


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants, parents first, from ``/proc``."""
    found = [pid]
    for process in found:
        found += children(process)
    return found


def children(pid: int) -> list[int]:
    """The direct children of a process; none if it has exited."""
    out: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            out += map(int, (task / "children").read_text().split())
    return out


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have exited."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _not_started(program: str, error: OSError) -> ClusterError:
    if isinstance(error, FileNotFoundError):
        message = f"the program {program!r} is not installed, or not on PATH"
        return ClusterError(message, program=program)
    return ClusterError(f"cannot start the program {program!r}: {error}")


def python(code: str, *arguments: str) -> list[str]:
    """A command line for this interpreter: isolated, without ``site``, fast to start."""
    if not sys.executable:
        raise ClusterError("sys.executable is empty: this Python has no executable to start")
    return [sys.executable, "-I", "-S", "-c", code, *arguments]
