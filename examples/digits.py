"""A hyper-parameter sweep of scikit-learn on its bundled digits, each fit in its own container.

    python examples/digits.py

Change one line of ``fit`` and run it again: only the code layer is new.
"""

import time
from dataclasses import dataclass

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

import clustrix_containers as cx


@dataclass(frozen=True)
class Setting:
    depth: int
    trees: int


@dataclass(frozen=True)
class Score:
    setting: Setting
    mean: float
    spread: float
    seconds: float


@cx.function(cpus=1, memory="1GiB", timeout="10m")
def fit(setting: Setting) -> Score:
    """Cross-validate one random forest on the 1,797 digits."""
    began = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    forest = RandomForestClassifier(setting.trees, max_depth=setting.depth, random_state=0)
    scores = cross_val_score(forest, images, labels, cv=3)
    return Score(setting, scores.mean(), scores.std(), time.perf_counter() - began)


if __name__ == "__main__":
    # What is imported here is not part of the image.
    import sys
    from pathlib import Path

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    settings = [Setting(depth, trees) for depth in (2, 4, 8, 16) for trees in (10, 20, 40)]

    began = time.perf_counter()
    console.print(str(fit.explain()), markup=False)
    build_seconds = time.perf_counter() - began

    began = time.perf_counter()
    jobs = fit.map(settings)
    for _ in track(jobs.as_completed(), "fitting", total=len(jobs), console=console):
        pass
    run_seconds = time.perf_counter() - began

    table = Table("depth", "trees", "accuracy", "spread", "seconds")
    for score in sorted(jobs, key=lambda score: -score.mean):
        row = (score.setting.depth, score.setting.trees)
        table.add_row(
            *map(str, row), f"{score.mean:.4f}", f"{score.spread:.4f}", f"{score.seconds:.2f}"
        )
    console.print(table)
    console.print(f"image built in {build_seconds:.2f} s; {len(jobs)} fits in {run_seconds:.2f} s")
    console.print(f"image {jobs.image}\nin {cx.image_directory()}")
    cxc = Path(sys.executable).with_name("cxc")
    console.print(f"to run this image again:  {cxc} rerun {jobs.image[7:19]}")
