"""A bare worker with a store for its outcome, and the client's directory for it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustrix_containers.results import delivery, directory
from clustrix_containers.results.outcome import Expected, Outcome, load
from clustrix_containers.worker import contract
from tests.bare_worker import KEY, RUN, WORKER, Bare, unpickle, write_code

DELIVER_SCRIPT = WORKER.with_name("deliver.py")


@dataclass
class Delivering:
    """``bare`` runs; what its message carries is put into ``mine``, the client's directory."""

    bare: Bare
    mine: Path

    @classmethod
    def of(cls, root: Path, python: str, code: str) -> Delivering:
        bare = Bare(root / "pod", python)
        write_code(bare.root, {"m.py": code})
        mine = root / "mine"
        mine.mkdir()
        return cls(bare, mine).configured(None)

    @property
    def message_file(self) -> Path:
        return self.bare.root / "termination log"

    @property
    def message(self) -> str:
        return self.message_file.read_text("utf-8")

    def configured(self, store: dict[str, Any] | None, **more: Any) -> Delivering:
        """Write ``run/deliver``."""
        config = {"message": str(self.message_file), "limit": 4096, "store": store, **more}
        (self.bare.root / "run/deliver").write_text(json.dumps(config))
        return self

    def parsed_message(self) -> delivery.Inline | delivery.Stored | delivery.Undelivered:
        assert len(self.message.encode()) <= contract.MESSAGE_LIMIT
        return delivery.read(self.message)

    def undelivered(self) -> str:
        """Why the outcome was not delivered."""
        parsed = self.parsed_message()
        assert isinstance(parsed, delivery.Undelivered), parsed
        return parsed.reason

    def put(self, element: int = 0, attempt: int = 0) -> None:
        """What came inline, into the client's directory."""
        parsed = self.parsed_message()
        assert isinstance(parsed, delivery.Inline), parsed
        delivery.put(self.expected(element, attempt), parsed)

    def expected(self, element: int = 0, attempt: int = 0) -> Expected:
        return Expected(self.mine, RUN, element, attempt, KEY)

    def outcome(self, element: int = 0, attempt: int = 0) -> Outcome:
        found = directory.collect(self.expected(element, attempt))
        assert found is not None
        return found

    def value(self, element: int = 0, attempt: int = 0) -> Any:
        return load(self.outcome(element, attempt), unpickle=unpickle)

    def give(
        self, element: int = 0, attempt: int = 0, *, word: str = "give"
    ) -> subprocess.Popen[bytes]:
        """The process that the client starts in the container to take the outcome."""
        results = str(self.bare.root / "results")
        return subprocess.Popen(
            [self.bare.python, str(DELIVER_SCRIPT), word, results, str(element), str(attempt)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def take(self, element: int = 0, attempt: int = 0) -> int:
        """Receive it all, and say so; the exit code of the process in the container."""
        with self.give(element, attempt) as process:
            assert process.stdout is not None and process.stdin is not None
            pieces = iter(lambda: process.stdout.read1(1 << 16) or None, None)  # type: ignore[union-attr]
            delivery.receive(pieces, self.expected(element, attempt))
            process.stdin.write(b"taken\n")
            process.stdin.close()
            return process.wait(30)
