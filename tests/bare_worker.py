"""The worker, run bare: a hand-made ``/opt/clustrix`` in a directory, no container."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

import clustrix_containers
from clustrix_containers.results import directory
from clustrix_containers.results.outcome import Expected, Outcome, load
from clustrix_containers.worker import contract

WORKER = Path(clustrix_containers.__file__).parent / "worker/worker.py"
RUN = "run-1"
KEY = b"k" * 32


def interpreters() -> list[str]:
    """Every Python from 3.10 on that is found here: on PATH, and pyenv's."""
    found: dict[str, str] = {f"3.{sys.version_info[1]}": sys.executable}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in range(10, 15):
        name = f"3.{minor}"
        places = [str(path) for path in pyenv.glob(f"versions/{name}.*/bin/python")]
        on_path = shutil.which(f"python{name}")
        if on_path and "shims" not in on_path:
            places.append(on_path)
        for place in places:
            found.setdefault(name, place)
    return [found[name] for name in sorted(found, key=lambda name: int(name.split(".")[1]))]


def unpickle(data: Any, buffers: Sequence[Any]) -> object:
    return pickle.loads(data, buffers=buffers)


def write_code(
    root: Path,
    files: Mapping[str, str | bytes],
    *,
    kind: str = "module",
    qualname: str = "f",
    script: str | None = None,
) -> None:
    """The code layer: files, and the entry that says what to run (module ``m``)."""
    for name, content in files.items():
        path = root / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    entry = {"version": 1, "kind": kind, "module": "m", "qualname": qualname}
    path = root / "code" / contract.ENTRY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**entry, "script": script, "name": qualname}))


def write_calls(root: Path, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """The call layer: one record per call."""
    (root / "call").mkdir(exist_ok=True)
    with (root / "call/index").open("wb") as index, (root / "call/data").open("wb") as data:
        for call in calls:
            pickled = pickle.dumps(call, 4)
            index.write(struct.pack("<QQ", data.tell(), len(pickled)))
            data.write(pickled)


def write_lib(root: Path) -> None:
    shutil.copytree(Path(cloudpickle.__file__).parent, root / "lib/cloudpickle")


@dataclass
class Bare:
    """One hand-made root and what the worker is told about it."""

    root: Path
    python: str = sys.executable
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "results").mkdir(parents=True)
        (self.root / "run").mkdir()
        (self.root / "run/key").write_bytes(KEY)

    def start(self, element: int = 0, attempt: int = 0, **env: str) -> subprocess.Popen[str]:
        full = {
            "PATH": os.environ["PATH"],
            contract.ENV_ROOT: str(self.root),
            contract.ENV_RUN: RUN,
            contract.ENV_ELEMENT: str(element),
            contract.ENV_ATTEMPT: str(attempt),
            **self.env,
            **env,
        }
        return subprocess.Popen(
            [self.python, str(WORKER)],
            env={name: value for name, value in full.items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, element: int = 0, attempt: int = 0, **env: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with self.start(element, attempt, **env) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def outcome(self, element: int = 0, attempt: int = 0) -> Outcome:
        outcome = directory.collect(Expected(self.root, RUN, element, attempt, KEY))
        assert outcome is not None, "the worker wrote no mark"
        return outcome

    def value(self, element: int = 0, attempt: int = 0) -> Any:
        return load(self.outcome(element, attempt), unpickle=unpickle)
