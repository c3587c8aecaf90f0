"""A drop-in ``concurrent.futures.Executor``."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .function import Function
from .jobs import Job, concurrent_results
from .options import Options


class Executor(concurrent.futures.Executor):
    """A drop-in ``concurrent.futures.Executor`` that runs plain functions in their images.

    ``on`` is the target; the other options are those of :class:`Options`.
    """

    def __init__(self, on: str | None = None, **options: Any) -> None:
        self._options = Options().but(**options, on=on)
        self._jobs: list[Job] = []
        self._open = True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        run = self._function(fn)._submit([(args, kwargs)], None, array=False)
        self._jobs.extend(run.jobs)
        job: Job = run.jobs[0]
        return job

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,  # noqa: ARG002
    ) -> Iterator[Any]:
        """The results in order, as the standard library's ``Executor.map``; one image, one array.

        ``chunksize`` is accepted and has no effect: every item is an element of the array.
        """
        jobs = self._function(fn).map(*iterables)
        self._jobs.extend(jobs[:])
        return concurrent_results(jobs[:], timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; ``wait`` for those that run, or ``cancel_futures`` first."""
        self._open = False
        if cancel_futures:
            for job in self._jobs:
                job.cancel()
        if wait:
            concurrent.futures.wait(self._jobs)

    def _function(self, fn: Callable[..., Any]) -> Function[..., Any]:
        if not self._open:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if isinstance(fn, Function):
            return Function(fn.__clustrix_function__, self._options)
        return Function(fn, self._options)
