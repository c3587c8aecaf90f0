"""The one retry policy: when to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from clustrix_containers.errors import Error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """``attempts`` in all; delays (seconds) double from ``first`` to ``longest``, with jitter.

    Only an :class:`Error` with a true ``temporary`` field is retried. Its ``retry_after`` field
    (seconds, from a server) is obeyed up to ``patience``; a longer one ends the attempts.
    """

    attempts: int = 5
    first: float = 0.5
    longest: float = 10.0
    patience: float = 60.0

    def delay(self, failures: int, error: Error) -> float | None:
        """Seconds to wait after this many ``failures`` in a row; None: give up."""
        if not error.fields.get("temporary") or failures >= self.attempts:
            return None
        requested = error.fields.get("retry_after")
        if requested is not None:
            return float(requested) if requested <= self.patience else None
        longest = min(self.longest, self.first * 2 ** (failures - 1))
        return random.uniform(longest / 2, longest)  # noqa: S311 - jitter, not a secret

    def run(self, once: Callable[[], T]) -> T:
        """``once()`` until it succeeds, fails for good, or the attempts are used up."""
        failures = 0
        while True:
            try:
                return once()
            except Error as error:  # noqa: PERF203 - it is a loop of attempts
                failures += 1
                delay = self.delay(failures, error)
                if delay is None:
                    raise
                time.sleep(delay)
