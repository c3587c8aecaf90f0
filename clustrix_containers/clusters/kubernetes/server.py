"""What an API server can do, judged by its version alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clustrix_containers.errors import ClusterError

OLDEST = (1, 19)


@dataclass(frozen=True, slots=True)
class Server:
    """A server's version. A field that it does not know it drops without a word, so none is sent."""

    major: int
    minor: int

    @classmethod
    def parse(cls, major: str, minor: str) -> Server:
        """From the two fields of ``/version`` (``"27+"`` on some clouds)."""
        numbers = [re.match(r"\d+", text) for text in (major, minor)]
        if not all(numbers):
            raise ClusterError(f"the API server says that its version is {major!r}.{minor!r}")
        return cls(*(int(number[0]) for number in numbers if number))

    @property
    def version(self) -> tuple[int, int]:
        return self.major, self.minor

    @property
    def group_policy(self) -> bool:
        """``fsGroupChangePolicy`` (on by default since 1.20)."""
        return self.version >= (1, 20)

    @property
    def indexed(self) -> bool:
        """Indexed Jobs, and Jobs that are made suspended (both on by default since 1.22)."""
        return self.version >= (1, 22)

    @property
    def labels_indexes(self) -> bool:
        """Whether the pods of an Indexed Job have their index as a label (since 1.28)."""
        return self.version >= (1, 28)

    @property
    def failure_policy(self) -> bool:
        """``podFailurePolicy`` and the condition DisruptionTarget (on by default since 1.26)."""
        return self.version >= (1, 26)

    @property
    def limit_per_index(self) -> bool:
        """``backoffLimitPerIndex`` (on by default since 1.29)."""
        return self.version >= (1, 29)

    def describe(self, count: int) -> str:
        """How an array of ``count`` elements runs there, in one sentence."""
        name = f"Kubernetes {self.major}.{self.minor}"
        if count == 1:
            return f"{name}: one Job"
        if not self.indexed:
            return f"{name} has no Indexed Jobs: each of the {count} elements is a Job"
        if not self.limit_per_index:
            return f"{name}: one Indexed Job; its retries are counted for all elements together"
        return f"{name}: one Indexed Job, whose elements fail and are retried one by one"
