"""The Apptainer that other tests build on behaves as one that is installed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clusters.daemon import wait_until

pytestmark = pytest.mark.apptainer

CONTAINED = ("exec", "--containall", "--cleanenv", "--no-home", "--pwd", "/")


@pytest.fixture
def apptainer(apptainer_path: Path) -> str:
    return str(apptainer_path / "apptainer")


def test_it_runs_a_folder_read_only_with_binds_and_gives_back_the_exit_code(
    apptainer: str, busybox_root: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / 'it\'s a "földer" $HOME'
    hostile.mkdir()
    (hostile / "input").write_text("from outside\n")
    script = "cat /mnt/it/input && echo made > /mnt/it/output && ! touch /denied && exit 7"

    done = subprocess.run(
        [apptainer, *CONTAINED, "--bind", f"{hostile}:/mnt/it", busybox_root, "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (7, "from outside\n"), done.stderr
    assert (hostile / "output").read_text() == "made\n"
    assert "Read-only file system" in done.stderr


def test_the_environment_does_not_come_along(apptainer: str, busybox_root: Path) -> None:
    done = subprocess.run(
        [apptainer, *CONTAINED, "--env", "GIVEN=a b", busybox_root, "env"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LEAKED": "yes"},
    )
    assert "GIVEN=a b\n" in done.stdout
    assert "LEAKED" not in done.stdout


def test_a_sif_that_it_made_runs(apptainer: str, busybox_root: Path, tmp_path: Path) -> None:
    sif = tmp_path / "image.sif"
    subprocess.run([apptainer, "build", sif, busybox_root], check=True, capture_output=True)
    done = subprocess.run(
        [apptainer, *CONTAINED, sif, "id", "-u"], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) == os.geteuid()


def test_a_signal_to_it_ends_what_runs_inside(
    apptainer: str, busybox_root: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    script = "echo started > /mnt/it/mark; exec sleep 1000"
    process = subprocess.Popen(
        [apptainer, *CONTAINED, "--bind", f"{shared}:/mnt/it", busybox_root, "sh", "-c", script]
    )
    try:
        mark = shared / "mark"
        assert wait_until(lambda: mark.exists() or process.poll() is not None, 30)
        assert mark.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
