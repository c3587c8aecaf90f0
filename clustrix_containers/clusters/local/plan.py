"""What a run's supervisor has to do, as one JSON file in the run's directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clustrix_containers.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host inside the container."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the supervisor needs; no image is read and nothing is unpacked after this.

    ``root`` is the unpacked root file system (for Docker: the image's id). ``memory`` and
    ``shm`` in bytes, ``timeout`` and ``grace`` in seconds. ``limits`` is ``auto`` or
    ``sample``; ``means`` how the runtime does it, where it can in more than one way. ``room`` is the
    directory of :mod:`.room`.
    """

    run: str
    name: str
    attempt: int
    image: str
    elements: range | tuple[int, ...]
    directory: Path
    runtime: str
    means: str
    root: str
    argv: tuple[str, ...]
    workdir: str
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    uid: int
    gid: int
    cpus: float
    memory: int | None
    timeout: float | None
    shm: int
    gpus: int
    max_parallel: int
    room: Path
    limits: str = "auto"
    network: str | None = None
    grace: float = 5.0

    def to_json(self) -> bytes:
        elements = self.elements
        value = asdict(self) | {
            "directory": str(self.directory),
            "room": str(self.room),
            "elements": (
                {"range": [elements.start, elements.stop, elements.step]}
                if isinstance(elements, range)
                else list(elements)
            ),
        }
        return json.dumps(value, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        try:
            value: dict[str, Any] = json.loads(data)
            elements = value["elements"]
            value["elements"] = (
                range(*elements["range"]) if isinstance(elements, dict) else tuple(elements)
            )
            value["directory"] = Path(value["directory"])
            value["room"] = Path(value["room"])
            value["argv"] = tuple(value["argv"])
            value["mounts"] = tuple(Mount(**mount) for mount in value["mounts"])
            return cls(**{field.name: value[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"the run's plan cannot be read: {error}") from error

    @property
    def control(self) -> Path:
        """The directory of this attempt: plan, journal, lock, requests to cancel."""
        return control(self.directory, self.attempt)

    @property
    def tag(self) -> str:
        """A name that no other attempt on this machine has: for cgroups and labels.

        From the run's directory and not its id: what sweeps up after one run must never
        meet what belongs to another that calls itself the same.
        """
        digest = hashlib.blake2b(os.fsencode(self.directory), digest_size=10)
        return f"{digest.hexdigest()}.{self.attempt}"

    def log(self, element: int) -> Path:
        return log(self.directory, element, self.attempt)

    def ids(self) -> Iterator[int]:
        return iter(self.elements)


def control(directory: Path, attempt: int) -> Path:
    return directory / "local" / str(attempt)


def log(directory: Path, element: int, attempt: int) -> Path:
    return directory / "logs" / f"{element}.{attempt}.log"
