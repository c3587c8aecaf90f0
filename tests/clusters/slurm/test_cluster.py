"""The SLURM cluster that other tests build on behaves as a real one does."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.machines.machine import Machine
from tests.clusters.machines.network import Network
from tests.clusters.slurm import faults
from tests.clusters.slurm.cluster import MACHINES, Slurm
from tests.clusters.slurm.fixtures import started
from tests.clusters.slurm.variants import VARIANTS, Variant

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

FAST = "current", "no-accounting"


@pytest.fixture(
    params=[
        pytest.param(it, id=it.name, marks=[] if it.name in FAST else pytest.mark.test_all)
        for it in VARIANTS.values()
    ]
)
def any_slurm(request: pytest.FixtureRequest) -> Iterator[Slurm]:
    """A cluster of each variant: the common ones are those of the whole session."""
    variant: Variant = request.param
    if variant.name == "current":
        yield request.getfixturevalue("slurm")
    elif variant.name == "no-accounting":
        yield request.getfixturevalue("slurm_without_accounting")
    else:
        yield from started(variant)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with a static busybox, packed."""
    busybox = Path(subprocess.check_output(["sh", "-c", "command -v busybox"], text=True).strip())
    path = tmp_path_factory.mktemp("image") / "image.tar"
    with tarfile.open(path, "w") as tar:
        for folder in ("bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var/tmp"):
            member = tarfile.TarInfo(f"image/{folder}")
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        tar.add(busybox, "image/bin/busybox")
        for name in ("sh", "cat", "echo", "id"):
            member = tarfile.TarInfo(f"image/bin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(member)
    return path


@pytest.fixture(scope="module", autouse=True)
def late(slurm: Slurm) -> str:
    """A job of node1 that is over its time limit: SLURM sees it within 30 s of other tests."""
    job = submit(slurm, "exec sleep 600", "--nodelist=node1", "--mem=10")
    faults.wait_for_state(slurm, job, "RUNNING")
    faults.expire(slurm, job)
    return job


@pytest.fixture(autouse=True)
def tidy(slurm: Slurm, late: str) -> Iterator[None]:
    """A test that fails leaves no job and no broken node to the next one."""
    yield
    jobs = slurm.control.run("squeue", "-h", "-o", "%A").stdout.split()
    if left := {job for job in jobs if job != late}:
        slurm.control.run("scancel", *left)
    slurm.up()


def submit(cluster: Slurm, script: str, *options: str) -> str:
    """The number of the user's job that runs a shell script."""
    words = ("sbatch", "--parsable", "--output=job-%A-%a.out", *options)
    return cluster.ssh(" ".join(words), text=f"#!/bin/sh\n{script}\n").strip()


def run(cluster: Slurm, script: str, *options: str) -> str:
    """:func:`submit`, and wait until it has ended well."""
    job = submit(cluster, script, *options)
    faults.wait_for_state(cluster, job, "COMPLETED")
    return job


def recorded(cluster: Slurm, job: str) -> str:
    """What the accounting has of a job: its state."""
    words = f"sacct --allocations --noheader --parsable2 --format=State --jobs={job}"
    return cluster.ssh(words).strip()


def wait_for_record(cluster: Slurm, job: str, state: str, seconds: float = 90) -> None:
    if not wait_until(lambda: recorded(cluster, job) == state, seconds):
        pytest.fail(f"{job} is {recorded(cluster, job)}, not {state}\n{cluster.logs()}")


def output(cluster: Slurm, job: str, element: int = 4294967294) -> str:
    """What a job has printed so far; nothing before its node has begun with it."""
    return cluster.ssh(f"cat job-{job}-{element}.out 2> /dev/null || true")


def begin(cluster: Slurm, script: str, *options: str) -> str:
    """:func:`submit`, and wait until the script runs: the controller reports RUNNING too early."""
    job = submit(cluster, f"echo begun; {script}", *options)
    if not wait_until(lambda: output(cluster, job).startswith("begun\n"), 90):
        pytest.fail(f"{job} does not begin\n{cluster.logs()}")
    return job


def remains(directory: Path) -> list[str]:
    """What a cluster that is down has left of itself on this machine."""
    found = [str(it) for it in (directory,) if it.exists()]
    found += [it for it in Path("/proc/mounts").read_text().splitlines() if directory.name in it]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(directory).encode() in process.read_bytes():
                found.append(str(process))
    return found


def test_no_machine_has_python(slurm: Slurm) -> None:
    search = r"find / -xdev \( -name 'python[0-9.]*' -o -name python -o -name 'libpython*' \) "
    search += r"! -type d"
    for name in MACHINES:
        assert slurm.machine(name).run("sh", "-c", search).stdout == ""


def test_a_user_runs_an_image_in_a_job(any_slurm: Slurm, archive: Path, tmp_path: Path) -> None:
    cluster = any_slurm
    copy = ("scp", "-q", "-F", cluster.ssh_config)
    subprocess.run([*copy, archive, "login:a 'b\" ü.tar"], check=True)
    cluster.ssh("tar xf a*.tar")
    # Without /dev/fuse nobody but root can mount a SIF.
    options = "" if cluster.variant.site.fuse else "--unsquash"
    job = run(
        cluster,
        f"""set -e
        apptainer --quiet build image.sif image
        apptainer exec {options} image.sif sh -c 'echo made by $(id -u) > result'
        apptainer exec image cat result""",
        *("--mem=1000", "--output=out"),
    )
    assert job.isdecimal()
    shown = cluster.ssh("cat out")
    assert "made by 2001\n" in shown, shown
    assert ("temporary sandbox" in shown) == (not cluster.variant.site.squashfuse or bool(options))
    subprocess.run([*copy, "login:result", tmp_path], check=True)
    assert (tmp_path / "result").read_text() == "made by 2001\n"
    cluster.ssh("rm -r a*.tar image image.sif out result")


def test_an_array_runs_on_both_nodes(slurm: Slurm) -> None:
    script = 'echo "$SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT on $(hostname)"'
    options = ("--array=0-3", "--cpus-per-task=2", "--gres=gpu:1")
    job = submit(slurm, f'{script} "$CUDA_VISIBLE_DEVICES"; sleep 2', *options)
    assert wait_until(lambda: recorded(slurm, job).split() == ["COMPLETED"] * 4, 90), recorded(
        slurm, job
    )
    shown = "".join(output(slurm, job, element) for element in range(4))
    assert re.findall(r"(.) of 4 on node\d [01]", shown) == list("0123"), shown
    assert set(re.findall(r"node\d", shown)) == {"node1", "node2"}
    with pytest.raises(StartError, match="Invalid job array"):
        submit(slurm, "true", "--array=1001")


def test_jobs_end_in_every_way(slurm: Slurm) -> None:
    lost = begin(slurm, "exec sleep 600", "--nodelist=node2", "--no-requeue")
    failed = submit(slurm, "exit 3", "--nodelist=node1")
    hungry = submit(
        slurm, "head -c 300000000 /dev/zero | tail | wc -c", "--mem=50", "--nodelist=node1"
    )
    cancelled = begin(slurm, "exec sleep 600", "--nodelist=node1")
    faults.kill_node(slurm, "node2")
    faults.fail_node(slurm, "node2")
    slurm.ssh("scancel", cancelled)

    wait_for_record(slurm, failed, "FAILED")
    wait_for_record(slurm, hungry, "OUT_OF_MEMORY")
    wait_for_record(slurm, cancelled, "CANCELLED by 2001")
    wait_for_record(slurm, lost, "NODE_FAIL")
    faults.restore_node(slurm, "node2")
    done = run(slurm, "echo again", "--nodelist=node2")
    wait_for_record(slurm, done, "COMPLETED")
    assert output(slurm, done) == "again\n"


def test_jobs_survive_the_controller(slurm: Slurm) -> None:
    job = begin(slurm, "while [ ! -e go-on ]; do sleep 0.1; done; echo survived")
    faults.stop_controller(slurm)
    assert "DOWN" in slurm.ssh("scontrol ping || true")
    slurm.ssh("touch go-on")  # the login node answers
    assert wait_until(lambda: "survived\n" in output(slurm, job), 30)
    faults.start_controller(slurm)
    wait_for_record(slurm, job, "COMPLETED")
    slurm.ssh("rm go-on")


@pytest.mark.test_all
def test_the_controller_starts_again_after_a_power_cut(slurm: Slurm) -> None:
    before = run(slurm, "true")
    wait_for_record(slurm, before, "COMPLETED")
    faults.kill_controller(slurm)
    slurm.up()
    wait_for_record(slurm, before, "COMPLETED")
    wait_for_record(slurm, run(slurm, "true", "--job-name=after"), "COMPLETED")


@pytest.mark.test_all
def test_the_controller_notices_a_dead_node(slurm: Slurm) -> None:
    job = begin(slurm, "exec sleep 600", "--nodelist=node2", "--no-requeue")
    faults.kill_node(slurm, "node2")
    wait_for_record(slurm, job, "NODE_FAIL")
    faults.restore_node(slurm, "node2")


@pytest.mark.test_all
def test_jobs_are_recorded_when_the_accounting_is_back(slurm: Slurm) -> None:
    faults.stop_accounting(slurm)
    job = run(slurm, "true")
    with pytest.raises(StartError, match="Connection refused"):
        recorded(slurm, job)
    slurm.start_accounting()
    wait_for_record(slurm, job, "COMPLETED")


def test_a_preempted_job_runs_again(slurm: Slurm) -> None:
    job = begin(
        slurm,
        'echo "run $SLURM_RESTART_COUNT"; exec sleep 600',
        "--open-mode=append",
        "--nodelist=node2",
    )
    urgent = faults.preempt(slurm, "node2")
    faults.wait_for_state(slurm, urgent, "RUNNING")
    faults.wait_for_state(slurm, job, "PENDING")
    slurm.control.run("scancel", urgent)
    assert wait_until(lambda: "run 1\n" in output(slurm, job), 90), output(slurm, job)
    assert "DUE TO PREEMPTION" in output(slurm, job)


def test_a_node_that_fails_is_used_again(slurm: Slurm) -> None:
    job = begin(slurm, "exec sleep 600", "--no-requeue", "--nodelist=node2")
    faults.fail_node(slurm, "node2")
    faults.wait_for_state(slurm, job, "NODE_FAIL")
    slurm.wait_for_nodes()


def test_a_paused_node_goes_on(slurm: Slurm) -> None:
    job = begin(slurm, "while :; do echo x; sleep 0.05; done", "--nodelist=node2")
    faults.pause_node(slurm, "node2")
    before = output(slurm, job)
    assert not wait_until(lambda: output(slurm, job) != before, 0.5)
    faults.restore_node(slurm, "node2")
    assert wait_until(lambda: output(slurm, job) != before, 30)
    slurm.ssh("scancel", job)


def test_a_login_node_that_is_cut_off_comes_back(slurm: Slurm) -> None:
    faults.cut(slurm, "login")
    reach = ("ssh", "-F", slurm.ssh_config, "-o", "ConnectTimeout=1", "login", "true")
    assert subprocess.run(reach, check=False, capture_output=True).returncode == 255
    slurm.login.reconnect()
    slurm.ssh("true")


def test_without_accounting_sacct_fails_and_squeue_remembers(
    slurm_without_accounting: Slurm,
) -> None:
    cluster = slurm_without_accounting
    job = submit(cluster, "exit 3", "--comment=x")
    assert faults.wait_for_state(cluster, job, "FAILED") == "FAILED"
    with pytest.raises(StartError, match="Slurm accounting storage is disabled"):
        recorded(cluster, job)
    assert cluster.ssh(f"squeue -h -t all -o %T -j {job}") == "FAILED\n"


def test_two_clusters_do_not_meet(slurm: Slurm, slurm_without_accounting: Slurm) -> None:
    other = slurm_without_accounting
    assert slurm.env().keys() == other.env().keys()
    assert slurm.sshd.address != other.sshd.address
    slurm.ssh("touch only-here")
    assert "only-here" not in other.ssh("ls -a")
    slurm.ssh("rm only-here")


START = """
import sys, time
from pathlib import Path
from tests.clusters.slurm.cluster import Slurm
from tests.clusters.slurm.variants import VARIANTS
Slurm(Path(sys.argv[1]), VARIANTS["no-accounting"], with_parent=True).up()
print("up", flush=True)
time.sleep(600)
"""


def test_what_a_killed_test_run_leaves_goes_with_the_next_up(tmp_path: Path) -> None:
    directory = tmp_path / "kïlled"
    cluster = Slurm(directory, VARIANTS["no-accounting"], with_parent=True)
    command = [sys.executable, "-c", START, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", process.wait(30)
        machines = [cluster.machine(name) for name in MACHINES]
        process.send_signal(signal.SIGKILL)
    parts: list[Machine | Network] = [*machines, cluster.network]
    assert wait_until(lambda: not any(part.running() for part in parts), 30)
    cluster.up()
    job = run(cluster, "echo new")
    assert (job, output(cluster, job)) == ("1", "new\n")
    cluster.down()
    assert not remains(directory)


def test_a_job_over_its_time_limit_ends(slurm: Slurm, late: str) -> None:
    wait_for_record(slurm, late, "TIMEOUT")


@pytest.mark.test_all
def test_a_full_disk_is_the_users_error() -> None:
    for cluster in started(VARIANTS["small-disk"]):
        faults.fill_disk(cluster)
        with pytest.raises(StartError, match="No space left on device"):
            cluster.ssh("cat > file", text="x" * 100_000)
        faults.free_disk(cluster)
        cluster.ssh("cat > file", text="x" * 100_000)
        run(cluster, "wc -c < file", "--output=out")
        assert cluster.ssh("cat out") == "100000\n"
        assert cluster.machine("node1").run("cat", "/home/alice/out").stdout == "100000\n"
        image = cluster.directory / "volume.img"
        attached = subprocess.check_output(["losetup", "-n", "-O", "NAME", "-j", image], text=True)
        assert len(attached.split()) == 1
        cluster.machine("node2").kill()
        faults.restore_node(cluster, "node2")
        assert cluster.machine("node2").run("cat", "/home/alice/out").stdout == "100000\n"
    assert str(cluster.directory) not in subprocess.check_output(["losetup", "-a"], text=True)
