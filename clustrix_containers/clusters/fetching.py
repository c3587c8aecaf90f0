"""Outcomes of several elements at once, each with an error of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from clustrix_containers.errors import ClusterError, Error
from clustrix_containers.results.outcome import Expected

from .task import Fetched, Handle, Task

AT_ONCE = 8
"""How many elements' outcomes are fetched at the same time."""


def fetch_each(
    fetch: Callable[[Task, Handle, Expected], Fetched], task: Task, handles: Sequence[Handle]
) -> Mapping[Handle, Fetched]:
    """``fetch`` of each element, a few side by side; what it raises becomes the element's error."""

    def one(handle: Handle) -> Fetched:
        try:
            key = (task.directory / "key").read_bytes()
            expected = Expected(task.directory, handle.run, handle.element, handle.attempt, key)
            return fetch(task, handle, expected)
        except Error as error:
            return Fetched(error=error)
        except OSError as error:
            text = f"the outcome of element {handle.element} cannot be stored here: {error}"
            return Fetched(error=ClusterError(text, temporary=True))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(handles, pool.map(one, handles), strict=True))
