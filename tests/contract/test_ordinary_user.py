"""The whole path as an ordinary user in the sandbox, whoever runs the tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT

SCRIPT = """
import os
import clustrix_containers as cx

offset = 40

@cx.function(cpus=1, memory="1GiB")
def work(x):
    return x + offset, os.getuid(), os.environ["HOME"]

if __name__ == "__main__":
    job = work.submit(2)
    assert job.result(100) == (42, os.getuid(), "/tmp"), job.result()
    assert [value[0] for value in work.map(range(3))] == [40, 41, 42]
    print(cx.attach(job.run).result(10)[0])
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others may enter, unlike the tests' own."""
    with tempfile.TemporaryDirectory(prefix="cxu-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def opened(paths: list[Path], skeletons: Path) -> str:
    """Shell commands that let others reach ``paths`` in this mount namespace, and nothing beside."""
    lines = []
    closed: dict[Path, Path] = {}
    for path in paths:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                skeleton = closed.setdefault(folder, skeletons / str(len(closed)))
                inside = skeleton / path.relative_to(folder)
                lines.append(shlex.join(["mkdir", "-p", str(inside)]))
                lines.append(shlex.join(["mount", "--rbind", str(path), str(inside)]))
                break
    for folder, skeleton in closed.items():
        lines.append(shlex.join(["mount", "--rbind", str(skeleton), str(folder)]))
    return "\n".join(lines)


def as_user(uid: int, place: Path, words: list[str], env: dict[str, str]) -> str:
    """Run a command as ``uid`` (as oneself, if this is no root); what it printed."""
    if os.geteuid() == 0:
        needed = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT]
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *words]
        script = f"set -e\n{opened(needed, place / 'skeletons')}\nexec {shlex.join(become)}"
        words = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(
        words, env=env, cwd=place, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("known", [True, False], ids=["nobody", "no passwd entry, no home"])
def test_a_script_runs_through_bubblewrap_and_through_unshare(place: Path, known: bool) -> None:
    uid = (65534 if known else 54321) if os.geteuid() == 0 else os.geteuid()
    own = place / "own"
    own.mkdir()
    script = own / "my script.py"
    script.write_text(SCRIPT)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if known:
        env["HOME"] = str(own)
    else:
        env.update({f"CLUSTRIX_{k}_DIR": str(own / k) for k in ("STATE", "DATA", "CACHE")})
    if os.geteuid() == 0:
        os.chown(own, uid, uid)
    for runtime in ("bubblewrap", "namespaces"):
        config = place / f"{runtime}.yml"
        config.write_text(f"targets: {{local: {{type: local, runtime: {runtime}}}}}\n")
        words = [sys.executable, str(script)]
        assert as_user(uid, place, words, {**env, "CLUSTRIX_CONFIG": str(config)}) == "42\n"
    assert shutil.which("bwrap"), "bubblewrap was not tried"
