"""The fake cluster in a process of its own, so that what a client costs can be measured.

``python -m tests.fake_kubernetes.process DIRECTORY``: images are those of this user's layout.
It answers each line of its input with one of JSON, and ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clustrix_containers.clusters import staging
from tests.fake_kubernetes.cluster import FakeCluster, Settings
from tests.fake_kubernetes.faults import Request
from tests.fake_kubernetes.images import Unpacked, unpacked

LARGE = Settings(forked=True, capacity=16, batch=1, history=20_000, bookmark=10)
"""For thousands of elements: their workers are forked, ``capacity`` at once."""


class ClusterProcess:
    """The process, as its parent sees it."""

    def __init__(self, process: subprocess.Popen[str], kubeconfig: Path) -> None:
        self._process = process
        self.kubeconfig = kubeconfig

    def counts(self) -> tuple[Counter[Request], Counter[str]]:
        """How often each request was made, and the bytes that were sent, by verb."""
        answer = self._ask("counts")
        requests = {Request(*request): times for request, times in answer["requests"]}
        return Counter(requests), Counter(answer["sent"])

    def forget_requests(self) -> None:
        """Count requests from now on."""
        self._ask("forget")

    def _ask(self, what: str) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def cluster_process(directory: Path) -> Iterator[ClusterProcess]:
    """The cluster with :data:`LARGE` and the namespace ``team``, until the end of the block."""
    command = [sys.executable, "-m", "tests.fake_kubernetes.process", str(directory)]
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        assert process.stdin and process.stdout
        kubeconfig = Path(json.loads(process.stdout.readline()))
        try:
            yield ClusterProcess(process, kubeconfig)
        finally:
            process.stdin.close()
            # Thousands of pods leave as many directories.
            code = process.wait(900)
    assert code == 0, "the fake cluster ended with an error"


def main(directory: Path) -> None:
    def pull(reference: str) -> Unpacked:
        image = staging.layout().image(reference.partition("@")[2])
        return unpacked(image, directory / "unpacked")

    with FakeCluster(directory / "server", pull, LARGE) as cluster:
        cluster.make_namespace("team")
        _write(str(cluster.kubeconfig("team")))
        for line in sys.stdin:
            if line.strip() == "forget":
                cluster.forget_requests()
            counted = [[list(it), times] for it, times in cluster.requests().items()]
            _write({"requests": counted, "sent": cluster.sent()})


def _write(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
