"""Programs that are missing, that may not run, that do not end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from clustrix_containers.errors import ClusterError
from clustrix_containers.remote import shell


def test_a_missing_program_is_an_error() -> None:
    with pytest.raises(ClusterError, match="'no-such-program' is not installed"):
        shell.run(["no-such-program"])


def test_a_program_that_may_not_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ClusterError, match=r"cannot start the program .*Permission denied"):
        shell.run([str(tmp_path / "x")])


def test_a_program_that_does_not_end_is_ended() -> None:
    before = time.monotonic()
    with pytest.raises(ClusterError, match=r"did not end within 0\.1 s"):
        shell.run(["sleep", "100"], timeout=0.1)
    assert time.monotonic() - before < 20


def test_a_program_gets_its_arguments_unchanged() -> None:
    words = ["a b", "'", '"', "\n", "$HOME", "ü", "*"]
    done = shell.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])
    assert eval(done.text) == words
