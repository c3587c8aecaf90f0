"""Importing the package imports nothing but the standard library: it works inside an image, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); import clustrix_containers;"
    "modules = sorted(sys.modules); print(json.dumps([clustrix_containers.__version__, modules]))"
)


def test_only_the_standard_library_and_little_of_it() -> None:
    # -S: no site-packages at all.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CODE, str(ROOT)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    version, modules = json.loads(done.stdout)
    assert version
    tops = {name.partition(".")[0] for name in modules}
    assert tops - set(sys.stdlib_module_names) <= {
        "clustrix_containers",
        "__main__",
        "sitecustomize",
    }
    ours = {name for name in modules if name.startswith("clustrix_containers.")}
    assert ours == {
        f"clustrix_containers.{name}"
        for name in (
            "api",
            "api.executor",
            "api.function",
            "api.jobs",
            "api.options",
            "api.status",
            "errors",
            "worker",
            "worker.contract",
        )
    }
    assert not {"sqlite3", "asyncio", "urllib.request", "email", "ssl"} & set(modules)
