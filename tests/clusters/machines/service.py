"""A program that runs in the background of a machine: started, asked, stopped, started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine

# The shell is gone at once, so that the machine's init is the parent.
_START = """
log=$1
shift
[ ! -e "$log" ] || cp -- "$log" "$log.before"
rm -f -- "$1"
setsid sh -c 'echo $$ > "$0"; exec "$@"' "$@" > "$log" 2>&1 < /dev/null &
# Until its number is there, it would seem to have ended.
until [ -s "$1" ]; do sleep 0.01; done
"""


@dataclass(frozen=True)
class Service:
    """``command`` in ``machine``, which it ends with.

    ``ready``: whether it answers.
    """

    name: str
    machine: Machine
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it without waiting; fine if it runs. :meth:`wait` waits until it answers."""
        if self.running():
            return
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        self.machine.run(
            *("sh", "-c", _START, "sh", self.log, self._pid, "env", *variables, *self.command)
        )

    def wait(self, seconds: float = 90) -> None:
        """Wait until it answers; :class:`StartError` with its log if it does not, or has ended."""
        alive = True

        def over() -> bool:
            nonlocal alive
            ready = self.ready()
            alive = ready or self.running()
            return ready or not alive

        done = wait_until(over, seconds)
        if not alive:
            raise StartError(f"{self.name} has ended:\n{self.logs()}")
        if not done:
            raise StartError(f"{self.name} gave no answer in {seconds:g} s:\n{self.logs()}")

    def running(self) -> bool:
        test = f'read -r pid < {self._pid} && [ -d "/proc/$pid" ]'
        return self.machine.run("sh", "-c", test, check=False).returncode == 0

    def started(self) -> float:
        """When it was last started, in seconds since the epoch; 0 if it never was."""
        done = self.machine.run("stat", "--format=%.Y", self._pid, check=False)
        return float(done.stdout) if done.returncode == 0 else 0.0

    def started_again(self) -> bool:
        """Whether it has been started more than once."""
        return self.machine.run("test", "-e", f"{self.log}.before", check=False).returncode == 0

    def stop(self, signal: str = "TERM") -> None:
        """Send the signal and wait until it has ended; fine if it does not run."""
        script = f"read -r pid < {self._pid} && kill -{signal} $pid"
        self.machine.run("sh", "-c", script, check=False)
        if not wait_until(lambda: not self.running(), 20):
            self.machine.run("sh", "-c", f"kill -KILL $(cat {self._pid})", check=False)
            if not wait_until(lambda: not self.running(), 20):
                raise StartError(f"{self.name} does not end")

    @property
    def log(self) -> str:
        """Its log's path in the machine; ``.before`` is that of the previous start."""
        return f"/var/log/{self.name}.log"

    def logs(self, lines: int = 40) -> str:
        """The last lines that it wrote."""
        if not self.machine.running():
            return f"(the machine {self.machine.name} is off)"
        return self.machine.run("tail", "-n", str(lines), self.log, check=False).stdout

    @property
    def _pid(self) -> str:
        return f"/run/{self.name}.pid"
