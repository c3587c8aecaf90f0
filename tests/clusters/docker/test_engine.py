"""The Docker engine that other tests build on: it runs images, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest
from testcontainers.core.container import DockerContainer

from tests.clusters.daemon import StartError, wait_until
from tests.clusters.docker.engine import Engine, answers, import_busybox

pytestmark = pytest.mark.docker


def test_a_container_runs_and_its_output_and_exit_code_come_back(
    docker_host: str, busybox_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    container = DockerContainer(
        busybox_image,
        command="sh -c 'echo out; echo err >&2; exit 7'",
    )
    with container:
        wrapped = container.get_wrapped_container()
        assert wrapped is not None
        assert wrapped.wait()["StatusCode"] == 7
        assert container.get_logs() == (b"out\n", b"err\n")


def test_down_ends_running_containers_and_leaves_no_mount_process_or_file(
    own_engine: Engine, busybox_image: str
) -> None:
    own_engine.up()
    import_busybox(own_engine.host, busybox_image)
    client = docker.DockerClient(base_url=own_engine.host)
    client.containers.run(busybox_image, ["sleep", "1000"], detach=True)
    client.close()

    own_engine.down()

    assert not own_engine.directory.exists()
    assert str(own_engine.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not answers(own_engine.host)


def test_up_and_down_are_idempotent(own_engine: Engine) -> None:
    own_engine.up()
    own_engine.up()
    assert answers(own_engine.host)
    own_engine.down()
    own_engine.down()


def test_an_engine_ends_with_the_process_that_started_it(own_engine: Engine) -> None:
    script = (
        "import os, sys; from pathlib import Path; from tests.clusters.docker.engine import Engine;"
        "Engine(Path(sys.argv[1]), with_parent=True).up(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, own_engine.directory], check=False)
    assert killed.returncode == -9
    assert wait_until(lambda: not own_engine.running(), 20)


def test_an_engine_that_cannot_start_fails_with_its_log(own_engine: Engine) -> None:
    (own_engine.directory / "data").write_text("in the way of a folder")
    with pytest.raises(StartError, match=r"dockerd ended with 1:\n(.*\n)*.*points to a file"):
        own_engine.up()


def test_without_root_the_error_explains_how_to_name_an_engine() -> None:
    script = (
        "import os; from pathlib import Path; from tests.clusters.docker.engine import Engine;"
        "os.geteuid() or os.setuid(65534); Engine(Path('/tmp/cxd-never')).up()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "CLUSTRIX_TEST_DOCKER_HOST" in done.stderr
