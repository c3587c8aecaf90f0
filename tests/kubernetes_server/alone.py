"""The played Kubernetes in a process of its own, so that what a client costs can be measured.

``python -m tests.kubernetes_server.alone DIRECTORY``: images are those of this user's layout.
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
from tests.kubernetes_server.disturbances import Request
from tests.kubernetes_server.images import Unpacked, unpacked
from tests.kubernetes_server.server import Server, Settings

LARGE = Settings(forked=True, room=16, batch=1, window=20_000, bookmark=10)
"""For thousands of elements: their workers are forked, as many at once as ``room``."""


class Alone:
    """The server's process, asked from here."""

    def __init__(self, process: subprocess.Popen[str], kubeconfig: Path) -> None:
        self._process = process
        self.kubeconfig = kubeconfig

    def counts(self) -> tuple[Counter[Request], Counter[str]]:
        """How often each request was made, and the bytes that were sent, by verb."""
        said = self._ask("counts")
        requests = {Request(*request): times for request, times in said["requests"]}
        return Counter(requests), Counter(said["sent"])

    def forget(self) -> None:
        """Count requests from now on."""
        self._ask("forget")

    def _ask(self, what: str) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[Alone]:
    """The server with :data:`LARGE` and the namespace ``team``, until the end of the block."""
    command = [sys.executable, "-m", "tests.kubernetes_server.alone", str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin and process.stdout
        kubeconfig = Path(json.loads(process.stdout.readline()))
        try:
            yield Alone(process, kubeconfig)
        finally:
            process.stdin.close()
            # Thousands of pods leave as many directories.
            code = process.wait(900)
    assert code == 0, "the played Kubernetes ended with an error"


def main(directory: Path) -> None:
    def pull(reference: str) -> Unpacked:
        image = staging.layout().image(reference.partition("@")[2])
        return unpacked(image, directory / "unpacked")

    with Server(directory / "server", pull, LARGE) as server:
        server.make_namespace("team")
        _say(str(server.kubeconfig(namespace="team")))
        for line in sys.stdin:
            if line.strip() == "forget":
                server.forget_requests()
            counted = [[list(it), times] for it, times in server.requests().items()]
            _say({"requests": counted, "sent": server.sent()})


def _say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
