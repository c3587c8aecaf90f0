"""Which blobs a registry's repositories are known to hold: a cache, never the truth.

One file per repository, one digest per line, the newest last. What is wrong in it costs
one more round of a push (the registry answers ``MANIFEST_BLOB_UNKNOWN``), never more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from clustrix_containers.oci.model import Reference

_MOST = 4096
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Presence:
    """What ``repository`` (and its neighbours in the same registry) hold, kept in ``directory``."""

    def __init__(self, directory: Path, name: Reference) -> None:
        host = hashlib.sha256(name.registry.encode()).hexdigest()[:16]
        self._directory = directory / host
        self._repository = name.repository
        self._lock = threading.Lock()

    def known(self) -> set[str]:
        """The digests that this repository held when it was last asked."""
        return set(self._read(self._path(self._repository)))

    def neighbours(self, digest: str) -> list[str]:
        """Other repositories of this registry that are known to hold ``digest``."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                name = path.name.replace("+", "/")
                temporary = path.name.startswith(".")
                if not temporary and name != self._repository and digest in self._read(path):
                    found.append(name)
        return sorted(found)

    def add(self, digests: Iterable[str]) -> None:
        """Remember digests; a cache that cannot be written is no error."""
        with self._lock:
            path = self._path(self._repository)
            before = self._read(path)
            new = set(digests)
            if new <= set(before):
                return
            lines = [line for line in before if line not in new] + sorted(new)
            self._write(path, lines[-_MOST:])

    def forget(self) -> None:
        """This repository's file is wrong: start anew."""
        with contextlib.suppress(OSError):
            self._path(self._repository).unlink()

    def _path(self, repository: str) -> Path:
        # "+" cannot be in a repository's name.
        return self._directory / repository.replace("/", "+")

    @staticmethod
    def _read(path: Path) -> list[str]:
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return []
        return [line for line in text.splitlines() if _DIGEST.fullmatch(line)]

    @staticmethod
    def _write(path: Path, lines: list[str]) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write("\n".join(lines) + "\n")
                Path(name).replace(path)
            finally:
                Path(name).unlink(missing_ok=True)
