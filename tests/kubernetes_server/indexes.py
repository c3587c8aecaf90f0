"""Indexes of an Indexed Job, as its status writes them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.kubernetes_server.resources import Object

INDEX = "batch.kubernetes.io/job-completion-index"


def index_of(pod: Object) -> int | None:
    text = pod["metadata"].get("annotations", {}).get(INDEX)
    return None if text is None else int(text)


def compressed(indexes: Iterable[int]) -> str:
    """``1,3-5,7``."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)
