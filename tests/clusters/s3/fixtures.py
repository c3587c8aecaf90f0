"""Fixtures: an S3 endpoint for the tests of one worker process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.daemon import StartError
from tests.clusters.s3.cluster import S3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 endpoint. It starts in about two seconds, so each worker has its own."""
    store = S3(Path(tempfile.mkdtemp(prefix="cx s3 ' ")), with_parent=True)
    try:
        store.up()
    except StartError as error:
        store.down()
        pytest.fail(str(error))
    try:
        yield store
    finally:
        store.down()
