"""This checkout beside another one: ``python -m benchmarks.before OTHER_CHECKOUT``.

Both need a virtual environment of their own in ``.venv`` (``make setup``). Each round starts one
process in each checkout, in turn, so that a change of the machine's speed hits both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
HERE = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, sys, time
began = time.perf_counter()
import clustrix_containers as cx
imported = time.perf_counter() - began
import pathlib
sys.path.insert(0, sys.argv[1])
path = pathlib.Path(sys.argv[1], "mine.py")
text = "import numpy\\n\\n\\ndef work(x):\\n    return x + {}\\n"
path.write_text(text.format(0))
import mine
function = cx.function(mine.work)
start = int(sys.argv[2])
function.submit(start).result()

def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

calls = [seconds(lambda: function.submit(start + it).result()) for it in range(1, 4)]
edits = []
for it in range(5):
    path.write_text(text.format(start + it))
    edits.append(seconds(function.build))
array = seconds(lambda: list(function.map(range(start, start + 40))))
print(json.dumps({
    "import, ms": [1000 * imported],
    "edit, build(), push to the layout, ms": [1000 * it for it in edits],
    "one trivial call (numpy imported), ms": [1000 * it for it in calls],
    "array of 40 trivial calls (numpy imported), s": [array],
}))
"""


def run(checkout: Path, home: Path, start: int) -> dict[str, list[float]]:
    """One process in a checkout, with state and caches of its own."""
    own = home / checkout.name
    (own / "project").mkdir(parents=True, exist_ok=True)
    places = {f"CLUSTRIX_{it}_DIR": str(own / it) for it in ("CACHE", "DATA", "STATE")}
    done = subprocess.run(
        [checkout / ".venv/bin/python", "-c", SCRIPT, own / "project", str(start)],
        env={**os.environ, "PYTHONPATH": str(checkout), **places},
        cwd=own,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def main(other: Path) -> None:
    subjects = {"this checkout": HERE, "the other": other.resolve()}
    values: dict[str, dict[str, list[float]]] = {name: {} for name in subjects}
    with tempfile.TemporaryDirectory() as home:
        for subject, checkout in subjects.items():
            run(checkout, Path(home, subject.replace(" ", "-")), 0)
        for number in range(1, ROUNDS + 1):
            for subject, checkout in subjects.items():
                found = run(checkout, Path(home, subject.replace(" ", "-")), 1000 * number)
                for name, measured in found.items():
                    values[subject].setdefault(name, []).extend(measured)
    sys.stdout.write("| what | this checkout | the other | ratio |\n|---|---|---|---|\n")
    for name in values["this checkout"]:
        ours, theirs = (statistics.median(values[subject][name]) for subject in subjects)
        sys.stdout.write(f"| {name} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.2f} |\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
