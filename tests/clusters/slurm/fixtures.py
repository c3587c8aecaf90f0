"""Fixtures: a SLURM cluster for the tests of one worker process, and one of each variant."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.slurm.cluster import Slurm
from tests.clusters.slurm.variants import VARIANTS, Variant


def started(variant: Variant) -> Iterator[Slurm]:
    """A cluster in a directory with a hostile name; one that does not start is a failure."""
    directory = Path(tempfile.mkdtemp(prefix="cx slurm 'ü\" "))
    cluster = Slurm(directory / "cluster", variant, with_parent=True)
    try:
        try:
            cluster.up()
        except StartError as error:
            logs = cluster.logs()
            pytest.fail(f"{error}\n{logs}")
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A current SLURM with accounting. It starts in seconds, so each worker has its own.

    A test that breaks it mends it.
    """
    yield from started(VARIANTS["current"])


@pytest.fixture(scope="session")
def slurm_without_accounting(slurm: Slurm) -> Iterator[Slurm]:
    """A SLURM without slurmdbd, beside the other one."""
    yield from started(VARIANTS["no-accounting"])
