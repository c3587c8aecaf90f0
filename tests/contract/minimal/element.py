"""One element of the minimal cluster: its container, its limits, and how it ended."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from clustrix_containers.clusters import staging
from clustrix_containers.config.paths import paths
from clustrix_containers.containers.container import ContainerSpec, Mount
from clustrix_containers.containers.environment import container_environment, worker_environment
from clustrix_containers.containers.runtimes import choose, open_runtime
from clustrix_containers.containers.sandbox import limits, rootfs
from clustrix_containers.worker import contract

NOBODY = 65534


def spec_of(place: Path, task: dict) -> ContainerSpec:
    image = staging.layout().image(task["image"].rpartition("@")[2])
    unpacked = rootfs.prepare(image, paths().cache)
    results, run = Path(task["directory"], "results"), place / "run"
    run.mkdir()
    (run / "key").write_bytes(Path(task["directory"], "key").read_bytes())
    for path in (results, run, run / "key"):
        os.chown(path, NOBODY, NOBODY)
    got = task["resources"]
    worker = worker_environment(
        run=task["run"],
        attempt=task["attempt"],
        element=task["elements"][0],
        cpus=got["cpus"],
        timeout=got["timeout"],
        grace=5.0,
    )
    return ContainerSpec(
        root=str(unpacked.root),
        argv=tuple(task["command"]),
        env={**container_environment(image.settings["Env"], got["env"]), **worker},
        mounts=(
            *unpacked.mounts,
            *rootfs.host_files(unpacked.root),
            Mount(str(run), contract.RUN),
            Mount(str(results), contract.RESULTS, writable=True),
        ),
        workdir="/tmp",
        uid=NOBODY,
        gid=NOBODY,
        memory=got["memory"],
        shm=got["shm"],
    )


def main(place: Path, task: dict) -> None:
    log = os.open(place / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    spec = spec_of(place, task)
    runtime = open_runtime("sandbox", choose("sandbox").method)
    container = runtime.start(spec, log, lambda: None)
    end = None

    def cancel(*_: object) -> None:
        nonlocal end
        end = ("cancelled", "", None, "cancelled")
        container.kill()

    signal.signal(signal.SIGTERM, cancel)
    while (code := container.ended()) is None:
        used = limits.memory_in_use(container.pid, spec.memory) if spec.memory else 0
        if spec.memory and used > spec.memory:
            text = f"used more than its {spec.memory >> 20} MiB of memory"
            end = ("failed", "memory limit", 137, text)
            container.kill()
        time.sleep(0.05)
    if code == 0 or end is None:
        end = ("failed" if code else "succeeded", "", code, f"exit code {code}")
    (place / "end.part").write_text(json.dumps(end))
    (place / "end.part").rename(place / "end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
