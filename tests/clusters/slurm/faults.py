"""What goes wrong on SLURM clusters, on demand; each docstring has how it is undone."""

from __future__ import annotations

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.slurm import services
from tests.clusters.slurm.cluster import Slurm


def stop_controller(cluster: Slurm) -> None:
    """End slurmctld: clients wait 9 s, then fail. Jobs run on. See :func:`start_controller`."""
    services.slurmctld(cluster.control).stop()


def start_controller(cluster: Slurm) -> None:
    """Start slurmctld, and wait until both nodes are back."""
    controller = services.slurmctld(cluster.control)
    controller.start()
    controller.wait()
    cluster.wait_for_nodes()


def kill_controller(cluster: Slurm) -> None:
    """Power off the machine of the controller and the accounting; ``cluster.up()`` undoes it.

    SLURM then forgets, and ends, jobs of the last few seconds, which it has not saved.
    """
    cluster.control.kill()


def stop_accounting(cluster: Slurm) -> None:
    """End slurmdbd: sacct fails, jobs run. ``cluster.start_accounting()`` starts it again."""
    services.slurmdbd(cluster.control).stop()


def kill_node(cluster: Slurm, name: str) -> None:
    """Power off. The controller notices 15 s to 30 s later; see :func:`restore_node`."""
    cluster.machine(name).kill()


def pause_node(cluster: Slurm, name: str) -> None:
    """Stop every process of a node where it is, jobs too; see :func:`restore_node`."""
    cluster.machine(name).pause()


def restore_node(cluster: Slurm, name: str) -> None:
    """Undo :func:`kill_node` or :func:`pause_node`, and wait until both nodes are usable.

    A paused one continues its jobs, if the controller has not given them up.
    """
    machine = cluster.machine(name)
    if machine.running():
        machine.resume()
    machine.up()
    cluster.start_node(name)
    cluster.wait_for_nodes()


def fail_node(cluster: Slurm, name: str) -> None:
    """Jobs on the node end in NODE_FAIL at once, or are requeued.

    The node itself is well, and SLURM uses it again a moment later.
    """
    _scontrol(cluster, "update", f"NodeName={name}", "State=DOWN", "Reason=test")


def cut(cluster: Slurm, name: str) -> None:
    """Pull a machine's network cable; ``cluster.machine(name).reconnect()`` plugs it in again."""
    cluster.machine(name).cut()


def expire(cluster: Slurm, job: str) -> None:
    """A running job's time limit is reached now; SLURM looks every 30 s."""
    _scontrol(cluster, "update", f"JobId={job}", "EndTime=now")


def requeue(cluster: Slurm, job: str) -> None:
    """A running job goes back to the queue, as an administrator does it; it waits 2 s there."""
    _scontrol(cluster, "requeue", job)


def preempt(cluster: Slurm, name: str) -> str:
    """Jobs on a node of a lower partition are requeued for an urgent job, whose number this is.

    It ends when it is cancelled, after 10 minutes at most.
    """
    done = cluster.control.run(
        *("sbatch", "--parsable", "--partition=urgent", f"--nodelist={name}", "--exclusive"),
        *("--chdir=/", "--output=/dev/null", "--wrap=exec sleep 600"),
    )
    return done.stdout.strip()


def fill_disk(cluster: Slurm) -> None:
    """Leave no block of the shared disk free; only where the variant has a small one."""
    if not cluster.variant.disk:
        raise StartError(f"the volume of the variant {cluster.variant.name} is this machine's disk")
    # A large write that does not fit leaves room for small ones; and what is not on the disk
    # yet holds more than it takes in the end.
    script = """
    for size in 1M 64k 4k 1k 1k; do
        dd if=/dev/zero bs="$size" oflag=append conv=notrunc of=/scratch/fill 2> /dev/null
        sync -f /scratch
    done
    [ -s /scratch/fill ]
    """
    cluster.login.run("sh", "-c", script)


def free_disk(cluster: Slurm) -> None:
    """Undo :func:`fill_disk`."""
    cluster.login.run("rm", "-f", "/scratch/fill")


def wait_for_state(cluster: Slurm, job: str, *states: str, seconds: float = 90) -> str:
    """Wait until the controller has a job in one of these states, and say in which one."""

    def state() -> str:
        found = cluster.control.run(
            *("squeue", "-h", "-t", "all", "-o", "%T", "-j", job), check=False
        )
        return found.stdout.strip()

    if not wait_until(lambda: state() in states, seconds):
        raise StartError(f"job {job} is {state()}, not {' or '.join(states)}\n{cluster.logs()}")
    return state()


def _scontrol(cluster: Slurm, *arguments: str) -> None:
    cluster.control.run("scontrol", *arguments)
