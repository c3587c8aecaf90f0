"""One attempt of a run, as its supervisor runs it: one JSON file in the run's directory."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clustrix_containers.containers.container import ContainerSpec
from clustrix_containers.errors import ClusterError

LABEL_ATTEMPT = "io.clustrix-containers.attempt"
LABEL_RUN = "io.clustrix-containers.run"
LABEL_ELEMENT = "io.clustrix-containers.element"
MESSAGE = "message"
"""The file in a delivery directory that is what the termination message is on Kubernetes."""


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """All that the supervisor needs: it reads no image and unpacks nothing.

    ``container`` is the same for all elements but for its scratch directory, its labels and the
    worker's variables. ``method``: how the runtime makes it, where it has more than one way.
    ``timeout`` and ``grace`` in seconds. ``limits``: ``auto`` or ``sample``. ``pool``: the
    directory of the :class:`.pool.ResourcePool`. ``delivers``: whether the worker delivers outcomes
    as the file ``run/deliver`` says; then each element has a results directory of its own.
    """

    run: str
    attempt: int
    image: str
    elements: range | tuple[int, ...]
    directory: Path
    runtime: str
    method: str
    container: ContainerSpec
    timeout: float | None
    max_parallel: int
    pool: Path
    limits: str = "auto"
    grace: float = 5.0
    delivers: bool = False

    def to_json(self) -> bytes:
        elements = self.elements
        value = asdict(self) | {
            "directory": str(self.directory),
            "pool": str(self.pool),
            "elements": (
                {"range": [elements.start, elements.stop, elements.step]}
                if isinstance(elements, range)
                else list(elements)
            ),
        }
        return json.dumps(value, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AttemptSpec:
        try:
            value: dict[str, Any] = json.loads(data)
            elements = value["elements"]
            value["elements"] = (
                range(*elements["range"]) if isinstance(elements, dict) else tuple(elements)
            )
            value["directory"] = Path(value["directory"])
            value["pool"] = Path(value["pool"])
            value["container"] = ContainerSpec.from_dict(value["container"])
            return cls(**{field.name: value[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"the specification of an attempt is damaged: {error}") from error

    @classmethod
    def read(cls, control: Path) -> AttemptSpec | None:
        """The one in this control directory; ``None`` if nobody has written it yet."""
        try:
            return cls.from_json((control / "attempt.json").read_bytes())
        except FileNotFoundError:
            return None

    @property
    def control(self) -> Path:
        """The directory of this attempt: this specification, and what :mod:`.journal` has there."""
        return control_directory(self.directory, self.attempt)

    @property
    def tag(self) -> str:
        """A name that no other attempt on this machine has: for cgroups and labels.

        Derived from the run's directory and not from its id: cleaning up after one run must
        never touch another one with the same id.
        """
        digest = hashlib.blake2b(os.fsencode(self.directory), digest_size=10)
        return f"{digest.hexdigest()}.{self.attempt}"

    @property
    def deliver_file(self) -> Path:
        """It has what the containers may do in a store: nobody needs it once they have ended."""
        return self.control / "run" / "deliver"

    def log(self, element: int) -> Path:
        return log_file(self.directory, self.attempt, element)

    def results(self, element: int) -> Path:
        """The directory that the element's worker writes to."""
        if self.delivers:
            return delivery_directory(self.directory, self.attempt, element)
        return self.directory / "results"

    def mark(self, element: int) -> Path:
        return self.results(element) / f"{element}.{self.attempt}.mark"


def control_directory(directory: Path, attempt: int) -> Path:
    return directory / "local" / str(attempt)


def delivery_directory(directory: Path, attempt: int, element: int) -> Path:
    """Where an element writes what it then delivers, and the :data:`MESSAGE` about it."""
    return control_directory(directory, attempt) / "delivery" / str(element)


def log_file(directory: Path, attempt: int, element: int) -> Path:
    return directory / "logs" / f"{element}.{attempt}.log"
