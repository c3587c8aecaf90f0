"""A Docker engine of the tests' own: no bridge, no firewall rules, everything in one directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """``DOCKER_HOST`` of an engine that lives as long as the block."""
    program = shutil.which("dockerd", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "there is no dockerd (apt install docker.io)"
    # A socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        place = Path(name)
        socket = place / "s"
        command = [program, "--data-root", place / "d", "--exec-root", place / "e"]
        command += ["--pidfile", place / "p", "-H", f"unix://{socket}", "--bridge=none"]
        command += ["--iptables=false", "--ip-forward=false", "--log-level=error"]
        with (
            (place / "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            try:
                deadline = time.monotonic() + 30
                while not socket.exists():
                    assert process.poll() is None, (place / "log").read_text()
                    assert time.monotonic() < deadline, "dockerd does not come up"
                    time.sleep(0.05)
                yield f"unix://{socket}"
            finally:
                process.terminate()
                process.wait(30)
