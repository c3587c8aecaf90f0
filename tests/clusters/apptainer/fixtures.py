"""Fixtures: the folder of a real Apptainer, and a small root file system to run in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clusters.apptainer.node import Node, installed


@pytest.fixture(scope="session")
def apptainer_path() -> Path:
    """The folder to put on ``PATH`` for an ``apptainer``: the machine's own, else sid's."""
    own = installed()
    if own is not None:
        return own
    node = Node()
    node.up()
    return node.path


@pytest.fixture
def busybox_root(tmp_path: Path) -> Path:
    """A root file system with busybox and the empty folders that a container needs."""
    root = tmp_path / "root"
    for folder in ("bin", "dev", "etc", "home", "mnt/it", "proc", "root", "sys", "tmp", "var/tmp"):
        (root / folder).mkdir(parents=True)
    for file in ("etc/passwd", "etc/group"):
        (root / file).touch()
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.fail("busybox is not installed: run 'make setup-system' as root")
    shutil.copy(busybox, root / "bin/busybox")
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    for name in names.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    return root
