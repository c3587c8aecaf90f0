"""A whole cluster in sixty lines: a process for each element, and files as its only state."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from clustrix_containers.api.status import Cause, State, Status
from clustrix_containers.clusters import staging
from clustrix_containers.clusters.task import Capabilities, Handle
from clustrix_containers.errors import ClusterError


class MinimalCluster:
    capabilities = Capabilities("layout", max_parallel=False, gpus=False)
    poll_interval = (0.02, 0.5)

    def check_options(self, options):
        for option in options:
            raise ClusterError(f"no such option: {option!r}", option=option)

    def check(self):
        return []

    def stage(self, image, *, repository, progress):
        return staging.to_layout(image)

    def describe(self, task):
        return "Each element is a process of its own."

    def preview(self, task):
        return f"{len(task.elements)} processes of {task.image}\n"

    def submit(self, task):
        for index in task.elements:
            place = Path(task.directory, "minimal", f"{index}.{task.attempt}")
            if not place.exists():  # the same run and attempt again starts nothing
                place.mkdir(parents=True)
                (place / "log").touch(0o600)
                facts = asdict(task) | {"elements": [index], "directory": str(task.directory)}
                element = [sys.executable, Path(__file__).with_name("element.py"), place]
                # It outlives its client and is nobody's child.
                detach = ["sh", "-c", '"$@" & echo $! > "$0"', place / "pid"]
                subprocess.run([*detach, *element, json.dumps(facts)], start_new_session=True)
        return [Handle(task.run, task.attempt, it, str(task.directory)) for it in task.elements]

    def states(self, handles):
        return {handle: self._status(self._place(handle)) for handle in handles}

    def subscribe(self, run, notify):
        return lambda: None

    def fetch(self, task, handles):
        return {}

    def find(self, run):
        return None

    def logs(self, handles, *, follow=False):
        for handle in handles:
            process = (
                ["cat"] if not follow else ["tail", "-f", "-n", "+1", f"--pid={self._pid(handle)}"]
            )
            with subprocess.Popen([*process, self._place(handle) / "log"], stdout=-1) as reader:
                yield from ((handle, line) for line in reader.stdout)

    def cancel(self, handles):
        for handle in handles:
            if self._status(self._place(handle)).state is State.RUNNING:
                os.kill(self._pid(handle), signal.SIGTERM)

    def prune_cache(self, older_than):
        pass

    def _place(self, handle):
        return Path(handle.id, "minimal", f"{handle.element}.{handle.attempt}")

    def _pid(self, handle):
        return int((self._place(handle) / "pid").read_text())

    def _status(self, place):
        if not (place / "end").exists():
            return Status(State.RUNNING if place.exists() else State.ABSENT)
        state, cause, code, message = json.loads((place / "end").read_text())
        return Status(State(state), Cause(cause), code, message)
