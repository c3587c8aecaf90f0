"""The local target through the built-in sandbox: real containers, limits, ends and accidents."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import clustrix_containers
from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters.local import LocalCluster, journal
from clustrix_containers.clusters.local.attempt import AttemptSpec
from clustrix_containers.clusters.task import Handle
from clustrix_containers.containers.sandbox import limits
from clustrix_containers.errors import (
    ClusterError,
    Error,
    ImageError,
    MemoryLimitExceeded,
    ResultError,
    TimeLimitExceeded,
    WorkerDied,
)
from clustrix_containers.oci.model import Image
from clustrix_containers.results.outcome import without_mark

from .conftest import Bench, wait_for
from .images import Layout

PACKAGE = str(Path(clustrix_containers.__file__).parents[1])

INSPECT = """
import os, socket
def f(host):
    status = dict(l.split(":", 1) for l in open("/proc/self/status"))
    def writable(path):
        try:
            open(path + "/x", "w").close()
        except OSError:
            return False
        return True
    shm = os.statvfs("/dev/shm")
    return {
        "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
        "caps": {int(status[n], 16) for n in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")},
        "no_new_privs": status["NoNewPrivs"].strip(),
        "writable": [p for p in ("/", "/opt/clustrix/code", "/opt/clustrix/call", "/dev", "/etc",
                     "/opt/clustrix/run", "/tmp", "/dev/shm") if writable(p)],
        "shm": shm.f_blocks * shm.f_frsize, "env": dict(os.environ), "host": os.path.exists(host),
        "hostname": socket.gethostname(), "pids": [p for p in os.listdir("/proc") if p.isdigit()],
        "mounts": open("/proc/self/mounts").read(), "hosts": open("/etc/hosts").read(),
        "null": open("/dev/null", "w").write("x"), "fds": os.listdir("/proc/self/fd"),
    }
"""


def commands() -> list[str]:
    out = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            out.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
    return out


def nothing_left(bench: Bench) -> bool:
    """No process, mount or cgroup of this test's."""
    directory = str(bench.directory)
    mine = [c for c in commands() if directory in c and "pytest" not in c]
    tags = [
        AttemptSpec.from_json(path.read_bytes()).tag
        for path in bench.directory.glob("*/local/*/attempt.json")
    ]
    # Only there: the cgroups of others come and go while their directories are walked.
    parent = limits.find()
    places = parent.directories if parent else ()
    groups = [path for place in places for tag in tags for path in place.glob(f"{tag}.*")]
    return not mine and directory not in Path("/proc/mounts").read_text() and not groups


def marked(task: Any) -> list[int]:
    """Elements whose first attempt has a completion mark."""
    return sorted(int(path.name.split(".")[0]) for path in task.directory.glob("results/*.0.mark"))


def supervisor(handles: Any) -> int:
    control = Path(handles[0].id) / "local/0"
    wait_for(lambda: journal.has_started(control))
    line = (control / "events.jsonl").read_text().splitlines()[0]
    return int(json.loads(line)["pid"])


# --- results --------------------------------------------------------------------------------


def test_values_come_back_and_nothing_is_left(bench: Bench) -> None:
    task = bench.task("def f(x): return x + 1", [(1,), (2,)])
    handles = bench.submit(task)
    assert {s.state for s in bench.wait(handles)} == {State.SUCCEEDED}, bench.output(handles)
    assert [bench.value(task, 0), bench.value(task, 1)] == [2, 3]
    wait_for(lambda: nothing_left(bench))


def test_only_some_elements(bench: Bench) -> None:
    from dataclasses import replace

    task = replace(bench.task("def f(x): return x", [(i,) for i in range(9)]), elements=(7, 2))
    assert {s.state for s in bench.run(task)} == {State.SUCCEEDED}
    assert marked(task) == [2, 7]


def test_an_image_without_our_annotations(bench: Bench) -> None:
    code = "def f(x): return [x, __file__]"
    image = bench.layout.image(code, [(5,)], annotated=False)
    task = bench.task(code, [(5,)], image=image)
    assert bench.run(task)[0].state is State.SUCCEEDED
    assert bench.value(task) == [5, "/opt/clustrix/code/m.py"]


def test_an_exception(bench: Bench) -> None:
    task = bench.task("def f():\n    raise ValueError('nö')")
    status = bench.run(task)[0]
    assert (status.state, status.exit_code, status.message) == (State.FAILED, 1, "ValueError: nö")
    with pytest.raises(ValueError, match="nö") as caught:
        bench.value(task)
    assert "raise ValueError('nö')" in str(caught.value.__cause__)


def test_an_unpicklable_result(bench: Bench) -> None:
    task = bench.task("import threading\ndef f(): return [threading.Lock()]")
    assert "cannot be pickled" in bench.run(task)[0].message
    with pytest.raises(ResultError, match=r"result\[0\] is a _thread\.lock"):
        bench.value(task)


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("os.kill(os.getpid(), 9)", 137, "SIGKILL"),
        ("__import__('ctypes').string_at(0)", 139, "SIGSEGV"),
        ("os._exit(7)", 7, "exited with code 7"),
    ],
)
def test_a_process_that_dies(bench: Bench, how: str, code: int, says: str) -> None:
    task = bench.task(f"import os\ndef f(): {how}")
    status = bench.run(task)[0]
    assert (status.state, status.cause, status.exit_code) == (State.FAILED, Cause.DIED, code)
    assert says in status.message
    with pytest.raises(WorkerDied, match=says):
        bench.value(task)


def test_one_gibibyte_without_a_second_copy(bench: Bench, tmp_path: Path) -> None:
    code = (
        "import pickle\n"
        "class Big:\n"
        "    def __init__(self, n): self.data = bytearray(n); self.data[::4096] = b'x' * (n // 4096)\n"
        "    def __reduce_ex__(self, protocol): return memoryview, (pickle.PickleBuffer(self.data),)\n"
        "def f(n): return Big(n)\n"
    )
    size = 1 << 30
    task = bench.task(code, [(size,)])
    assert bench.run(task)[0].state is State.SUCCEEDED
    client = (
        "import sys\n"
        "from pathlib import Path\n"
        "from clustrix_containers.results.directory import collect\n"
        "from clustrix_containers.results.outcome import Expected, load\n"
        "from tests.bare_worker import unpickle\n"
        "key = bytes.fromhex(sys.argv[2])\n"
        "outcome = collect(Expected(Path(sys.argv[1]), sys.argv[3], 0, 0, key))\n"
        # Not ru_maxrss: a new process inherits that of the one that started it.
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "value = load(outcome, unpickle=unpickle)\n"
        "assert len(value) == 1 << 30 and value[4096] == ord('x')\n"
        "value[0] = 1\n"
        "after = peak()\n"
        "print(outcome.mark.max_rss, (after - before) * 1024, after * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", client, str(task.directory), bench.key.hex(), task.run],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=True,
    )
    worker, growth, client_rss = map(int, done.stdout.split())
    assert worker < size + (128 << 20)
    assert growth < 64 << 20
    assert client_rss < 256 << 20


# --- what the container is --------------------------------------------------------------------


def check_inside(value: dict[str, Any], uid: int, gid: int, shm: int) -> None:
    assert (value["uid"], value["gid"]) == (uid, gid)
    assert set(value["groups"]) <= {gid, 65534}
    assert value["caps"] == {0}
    assert value["no_new_privs"] == "1"
    assert value["writable"] == ["/tmp", "/dev/shm"]
    assert value["shm"] == shm
    assert value["host"] is False
    assert value["hostname"] == "clustrix"
    assert value["pids"] == ["1", "2"]
    assert value["hosts"] == Path("/etc/hosts").read_text()
    assert len(value["fds"]) <= 8
    env = value["env"]
    assert (env["HOME"], env["FROM_IMAGE"], env["MINE"]) == ("/tmp", "1", "a 'b\"\n")
    assert not {"VIRTUAL_ENV", "PYTEST_CURRENT_TEST", "SECRET_OF_THE_CALLER"} & set(env)


def test_the_container_is_isolated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
    task = bench.task(
        INSPECT, [(sys.prefix,)], shm=32 << 20, env={"MINE": "a 'b\"\n"}, memory=256 << 20
    )
    statuses = bench.run(task)
    assert statuses[0].state is State.SUCCEEDED, statuses
    uid, gid = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    check_inside(bench.value(task), uid, gid, 32 << 20)


AS_USER = """
import json, os, pickle, sys, time
from pathlib import Path
from clustrix_containers.clusters.local import LocalCluster
from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
from clustrix_containers.results.directory import collect
from clustrix_containers.results.outcome import Expected, load
method, image, where = sys.argv[1:]
directory = Path(where, "run of a user")
directory.mkdir(mode=0o700)
(directory / "key").write_bytes(b"k" * 32)
cluster = LocalCluster(runtime=method, cache=Path(where, "cache"), grace=0.5)
resources = Resources(cpus=0.5, shm=32 << 20, env={"MINE": "a 'b\\"\\n"}, memory=512 << 20)
task = Task("u-1", "u", image, range(1), resources, directory)
handles = cluster.submit(task)
while not cluster.states(handles)[handles[0]].state.terminal:
    time.sleep(0.01)
sys.stderr.write(str(cluster.states(handles)) + b"".join(piece for _, piece in cluster.logs(handles)).decode())
outcome = collect(Expected(directory, "u-1", 0, 0, b"k" * 32))
value = load(outcome, unpickle=lambda data, buffers: pickle.loads(data, buffers=buffers))
value["caps"] = sorted(value["caps"])
print(json.dumps(value))
"""


@pytest.fixture
def as_user(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a Python program as an ordinary user: another one if this is root."""
    import shutil
    import tempfile

    uid = 54321 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        # The tests' own directories are closed to others.
        shutil.copytree(Path(PACKAGE, "clustrix_containers"), place / "lib/clustrix_containers")
        shutil.copytree(layout.directory, place / "layout")
        (place / "own").mkdir()
        os.chown(place / "own", uid, uid)

        def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            python = sys.executable if os.geteuid() else shutil.which("python3", path="/usr/bin")
            assert python, "another user needs a Python outside of root's home"
            names = ("STATE", "DATA", "CACHE")
            own = {f"CLUSTRIX_{name}_DIR": str(place / "own" / name) for name in names}
            become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
            return subprocess.run(
                [*(become if os.geteuid() == 0 else []), python, "-c", program, *arguments],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place / "lib"), **own},
                cwd=place,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )

        yield run, place, uid


@pytest.mark.parametrize("method", ["bubblewrap", "namespaces"])
def test_the_container_of_an_ordinary_user_is_isolated(
    bench: Bench, as_user: Any, method: str
) -> None:
    image = bench.layout.image(INSPECT, [(sys.prefix,)])
    run, place, uid = as_user
    for blob in (bench.layout.directory / "blobs/sha256").iterdir():
        target = place / "layout/blobs/sha256" / blob.name
        if not target.exists():
            target.write_bytes(blob.read_bytes())
    image = image.replace(str(bench.layout.directory), str(place / "layout"))
    done = run(AS_USER, method, image, str(place / "own"))
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    value["caps"] = set(value["caps"])
    check_inside(value, uid, uid if os.geteuid() == 0 else os.getegid(), 32 << 20)


# --- limits -----------------------------------------------------------------------------------


def test_the_time_limit(bench: Bench) -> None:
    task = bench.task("import time\ndef f(): time.sleep(100)", timeout=0.3)
    status = bench.run(task)[0]
    assert (status.cause, status.exit_code) == (Cause.TIME_LIMIT, 124)
    assert status.message == "ended at its time limit of 0.3 s"
    with pytest.raises(TimeLimitExceeded):
        bench.value(task, status=status)


def foreign(layout: Layout, *argv: str) -> str:
    """An image with another main process than our worker."""
    return layout.add(
        Image(
            layout.base, settings={"Entrypoint": argv, "Env": ["LD_LIBRARY_PATH=/opt/python/lib"]}
        )
    )


def test_the_supervisor_is_the_second_line_of_the_time_limit(bench: Bench) -> None:
    image = foreign(bench.layout, "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    status = bench.run(bench.task("", image=image, timeout=0.1))[0]
    assert (status.state, status.cause) == (State.FAILED, Cause.TIME_LIMIT)
    assert type(without_mark(status, run="x", element=0)) is TimeLimitExceeded


HUNGRY = """
import os
def f(size):
    pid = os.fork()
    data = bytearray(b"x") * size
    if pid == 0:
        os._exit(0)
    return len(data)
"""


@pytest.mark.parametrize("limits", ["auto", "sample"])
def test_the_memory_limit(bench: Bench, limits: str) -> None:
    bench.cluster = LocalCluster(
        runtime="sandbox", cache=bench.cluster.cache, limits=limits, grace=1.0
    )
    code = "import time\ndef f(size):\n    data = bytearray(b'x') * size\n    time.sleep(0.5)\n    return len(data)"
    task = bench.task(code, [(1 << 20,), (256 << 20,)], memory=96 << 20)
    within, over = bench.run(task)
    assert within.state is State.SUCCEEDED
    assert (over.state, over.cause) == (State.FAILED, Cause.MEMORY_LIMIT)
    assert "its memory limit of 96 MiB" in over.message
    if 1 in marked(task):
        with pytest.raises(MemoryLimitExceeded, match="96 MiB"):
            bench.value(task, 1, over)
    assert type(without_mark(over, run="x", element=1)) is MemoryLimitExceeded
    wait_for(lambda: nothing_left(bench))


def test_sampling_counts_shared_pages_once(bench: Bench) -> None:
    bench.cluster = LocalCluster(runtime="sandbox", cache=bench.cluster.cache, limits="sample")
    code = (
        "import os, time\n"
        "def f():\n"
        "    data = bytearray(b'x') * (48 << 20)\n"
        "    pids = [os.fork() for _ in range(3)]\n"
        "    time.sleep(0.6)\n"
        "    if 0 in pids: os._exit(0)\n"
        "    return len(data)"
    )
    task = bench.task(code, memory=128 << 20)
    assert bench.run(task)[0].state is State.SUCCEEDED


def test_max_parallel(bench: Bench) -> None:
    code = "import time\ndef f():\n    t = time.monotonic()\n    time.sleep(0.2)\n    return t, time.monotonic()"
    task = bench.task(code, [()] * 6, max_parallel=2)
    bench.run(task)
    spans = [bench.value(task, i) for i in range(6)]
    assert max(sum(a <= t < b for a, b in spans) for t, _ in spans) <= 2


# --- ends and accidents ------------------------------------------------------------------------

TREE = """
import subprocess, sys, time
def f(name):
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep " + name + " & sleep " + name + "; :"], start_new_session=True)
    print("on")
    time.sleep(1000)
"""


def unique() -> str:
    return f"98765.{secrets.randbelow(10**9)}"


def test_cancel_ends_the_whole_tree(bench: Bench) -> None:
    names = [unique() for _ in range(3)]
    task = bench.task(TREE, [(name,) for name in names], max_parallel=2)
    handles = bench.submit(task)
    wait_for(lambda: all(f"sleep {name}" in commands() for name in names[:2]))
    bench.cluster.cancel([handles[0], handles[2]])
    statuses = bench.wait([handles[0], handles[2]])
    assert {s.state for s in statuses} == {State.CANCELLED}
    wait_for(lambda: f"sleep {names[0]}" not in commands())
    assert bench.cluster.states(handles)[handles[1]].state is State.RUNNING
    assert f"sleep {names[1]}" in commands()
    bench.cluster.cancel(handles)
    bench.wait(handles)
    wait_for(lambda: nothing_left(bench))
    assert not any(name in command for name in names for command in commands())
    assert marked(task) == []


def test_a_killed_supervisor_takes_its_containers_along_and_is_reported(bench: Bench) -> None:
    name = unique()
    code = TREE + "\ndef g(x): pass"
    task = bench.task(code, [(name,), (name,)], max_parallel=1, memory=64 << 20)
    handles = bench.submit(task)
    wait_for(lambda: f"sleep {name}" in commands())
    os.kill(supervisor(handles), signal.SIGKILL)
    wait_for(lambda: f"sleep {name}" not in commands())
    first, second = bench.wait(handles)
    assert (first.state, first.cause) == (State.FAILED, Cause.DIED)
    assert "was killed while it ran" in first.message
    assert "before it was started" in second.message
    wait_for(lambda: nothing_left(bench))
    assert bench.cluster.submit(task) == handles
    assert [s.state for s in bench.wait(handles)] == [State.FAILED] * 2


def test_a_supervisor_that_is_terminated_reports_it(bench: Bench) -> None:
    handles = bench.submit(
        bench.task("import time\ndef f(): time.sleep(1000)", [(), ()], max_parallel=1)
    )
    bench.wait(handles[:1], State.RUNNING)
    os.kill(supervisor(handles), signal.SIGTERM)
    assert {s.message for s in bench.wait(handles)} == {"the run's supervisor received SIGTERM"}


CLIENT = """
import os, signal, sys
from pathlib import Path
from clustrix_containers.clusters.local import LocalCluster
from clustrix_containers.api.options import Resources
from clustrix_containers.clusters.task import Task
image, directory, cache, run = sys.argv[1:]
task = Task(run, "run", image, range(2), Resources(cpus=0.5), Path(directory), max_parallel=1)
for handle in LocalCluster(runtime="sandbox", cache=cache).submit(task):
    print(repr(handle))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_client_dies_and_another_process_takes_over(bench: Bench) -> None:
    code = "import os, time\ndef f(x):\n    time.sleep(0.3)\n    return x"
    task = bench.task(code, [(1,), (2,)])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CLIENT,
            task.image,
            str(task.directory),
            str(bench.cluster.cache),
            task.run,
        ],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    handles = [eval(line, {"Handle": Handle}) for line in done.stdout.splitlines()]
    assert [s.state for s in bench.wait(handles)] == [State.SUCCEEDED] * 2
    assert [bench.value(task, i) for i in range(2)] == [1, 2]


def test_submitting_again_adopts(bench: Bench) -> None:
    code = "import time\ndef f(x):\n    print('once')\n    time.sleep(0.2)"
    task = bench.task(code, [(1,), (2,)])
    results: list[Any] = []
    other = LocalCluster(runtime="sandbox", cache=bench.cluster.cache)
    clusters = [bench.cluster, bench.cluster, other]
    threads = [
        threading.Thread(target=lambda c=c: results.append(c.submit(task))) for c in clusters
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handles = bench.submit(task)
    assert results == [handles] * 3
    bench.wait(handles)
    assert list(bench.cluster.logs(handles)) == [(handle, b"once\n") for handle in handles]
    with pytest.raises(ClusterError, match="with another image"):
        bench.cluster.submit(bench.task(code + " ", [(1,), (2,)]))
    assert bench.run(bench.task(code + " ", [(1,), (2,)], attempt=1))[0].state is State.SUCCEEDED


def test_logs_while_it_runs(bench: Bench) -> None:
    code = (
        "import os, time\n"
        "def f():\n"
        "    print('first ü', end='')\n"
        "    while not os.path.exists('/opt/clustrix/results/go'): time.sleep(0.01)\n"
        "    print('second')\n"
    )
    task = bench.task(code)
    handles = bench.submit(task)
    stream = bench.cluster.logs(handles, follow=True)
    assert next(stream) == (handles[0], "first ü".encode())
    assert bench.output(handles) == "first ü"
    (task.directory / "results/go").touch()
    assert b"".join(piece for _, piece in stream) == b"second\n"
    assert bench.output(handles) == "first üsecond\n"


def test_an_image_that_cannot_start_is_reported(bench: Bench) -> None:
    status = bench.run(bench.task("", image=foreign(bench.layout, "/no/such/program")))[0]
    assert (status.state, status.cause) == (State.FAILED, Cause.DIED)
    assert "/no/such/program" in status.message


# --- preparing ----------------------------------------------------------------------------------


def test_a_changed_function_unpacks_only_its_code(bench: Bench) -> None:
    cache = bench.cluster.cache
    assert cache
    for number in range(2):
        task = bench.task(f"def f(x): return x, {number}", [(1,)], name=f"edit{number}")
        assert bench.run(task)[0].state is State.SUCCEEDED
        assert bench.value(task) == (1, number)
        roots = sorted(p.name for p in (cache / "rootfs").iterdir() if not p.name.startswith("."))
        layers = {p.name for p in (cache / "layers").iterdir() if not p.name.startswith(".")}
        if number == 0:
            before = (roots, layers)
    assert roots == before[0]
    assert len(layers - before[1]) == 1


def test_a_damaged_layer_is_refused_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    task = bench.task("def f(): return 'damaged'")
    digest = json.loads(
        (bench.layout.directory / "blobs/sha256" / task.image.rpartition(":")[2]).read_text()
    )["layers"][2]["digest"]
    blob = bench.layout.directory / "blobs/sha256" / digest[7:]
    good = blob.read_bytes()
    try:
        blob.write_bytes(good[:-40])
        with pytest.raises(Error, match=digest):
            bench.cluster.submit(task)
        # The layout has thrown the damaged blob away.
        assert not blob.exists()
        with pytest.raises(Error, match=digest):
            bench.cluster.submit(task)
    finally:
        blob.write_bytes(good)
    assert bench.cluster.cache
    assert not list(bench.cluster.cache.glob("*/.*.tmp"))
    assert not (task.directory / "local/0").exists()
    assert bench.run(task)[0].state is State.SUCCEEDED


def test_what_cannot_be_submitted_is_reported(bench: Bench) -> None:
    task = bench.task("def f(): pass", gpus=1)
    with pytest.raises(ClusterError, match="cannot pass GPUs"):
        bench.cluster.submit(task)
    with pytest.raises(ClusterError, match="runs images of an image layout"):
        bench.cluster.submit(bench.task("", image="docker.io/library/x@sha256:" + "0" * 64))
    with pytest.raises(ImageError, match="no image"):
        bench.cluster.submit(bench.task("", image="oci:/nowhere@sha256:" + "0" * 64))
    task = bench.task("def f(): pass", name="nokey")
    (task.directory / "key").unlink()
    with pytest.raises(ClusterError, match="key cannot be read"):
        bench.cluster.submit(task)


def test_a_run_whose_directory_was_removed_is_absent(bench: Bench) -> None:
    import shutil

    task = bench.task("def f(): pass", name="gone")
    handles = bench.cluster.submit(task)
    bench.wait(handles)
    shutil.rmtree(task.directory)
    status = LocalCluster(cache=bench.cluster.cache).states(handles)[handles[0]]
    assert status == Status(State.ABSENT, message="the run's directory no longer exists")
    stream = bench.cluster.logs(handles, follow=True)
    assert list(stream) == []
    bench.cluster.cancel(handles)


def test_describe_names_the_runtime(bench: Bench) -> None:
    assert bench.cluster.describe(bench.task("def f(): pass")).startswith("sandbox: ")


def test_a_large_array_in_flat_memory(bench: Bench) -> None:
    count = 2000
    # Not our worker: this is about the supervisor, and a shell starts faster.
    image = foreign(bench.layout, "/bin/sh", "-c", ":")
    task = bench.task("", [()] * count, image=image, max_parallel=4, cpus=1)
    handles = bench.submit(task)
    pid = supervisor(handles)
    peaks = []
    deadline = time.monotonic() + 240
    while not all(s.state.terminal for s in bench.cluster.states(handles).values()):
        assert time.monotonic() < deadline
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(int(status.split("VmRSS:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        time.sleep(0.25)
    assert {s.state for s in bench.cluster.states(handles).values()} == {State.SUCCEEDED}
    assert max(peaks) < 40 << 10
    assert max(peaks[len(peaks) // 2 :]) - min(peaks[len(peaks) // 4 : len(peaks) // 2]) < 2 << 10
    # Of this thread's own work: the machine may be busy with other things.
    before = time.thread_time()
    bench.cluster.states(handles)
    assert time.thread_time() - before < 0.1
