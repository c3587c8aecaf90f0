"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from clustrix_containers.errors import RegistryError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """``attempts`` in all; waits (seconds) double from ``first`` to ``most``, with full jitter.

    A ``Retry-After`` of the server is obeyed up to ``patience`` seconds; one that asks
    for more ends the attempts at once.
    """

    attempts: int = 5
    first: float = 0.5
    most: float = 10.0
    patience: float = 60.0

    def delay(self, failures: int, error: RegistryError) -> float | None:
        """Seconds to wait after so many ``failures`` in a row; None: give up."""
        if not error.temporary or failures >= self.attempts:
            return None
        asked = error.fields.get("retry_after")
        if asked is not None:
            return float(asked) if asked <= self.patience else None
        longest = min(self.most, self.first * 2 ** (failures - 1))
        return random.uniform(longest / 2, longest)  # noqa: S311 - jitter, no secret

    def run(self, once: Callable[[], T]) -> T:
        """``once()`` until it works, fails for good, or the attempts are used up."""
        failures = 0
        while True:
            try:
                return once()
            except RegistryError as error:  # noqa: PERF203 - it is a loop of attempts
                failures += 1
                delay = self.delay(failures, error)
                if delay is None:
                    raise
                time.sleep(delay)
