from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


class Project:
    """A directory of the user's, first on ``sys.path`` while a test runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, str | bytes]) -> Path:
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = textwrap.dedent(content).encode()
            target.write_bytes(content)
        importlib.invalidate_caches()
        return self.root

    def load(self, name: str) -> ModuleType:
        return importlib.import_module(name)

    def python(
        self, *args: str, stdin: str | None = None, cwd: Path | None = None, **env: str
    ) -> str:
        """A new Python process that has this project's helpers; its standard output."""
        done = subprocess.run(
            [sys.executable, *args],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd or self.root,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                **env,
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    root = tmp_path / "pro ject's ü"
    root.mkdir()
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield Project(root)
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(root) in str(getattr(module, "__file__", None) or getattr(module, "__path__", "")):
            del sys.modules[name]


@pytest.fixture
def bundle_of(project: Project) -> Callable[..., Any]:
    """The bundle of ``module:qualname`` in a project of these files."""

    def build(content: dict[str, str | bytes], target: str, **options: Any) -> Any:
        from clustrix_containers.capture.callables import capture

        project.write(content)
        module, _, qualname = target.partition(":")
        found: Any = project.load(module)
        for part in qualname.split("."):
            found = getattr(found, part)
        return capture(found, **options)

    return build
