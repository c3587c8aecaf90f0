"""Runs the measurements and writes ``RESULTS.md``: ``python -m benchmarks.run [WORD …]``.

A measurement is a function that yields one :class:`Case` per subject: ours first, then the
peer or the state before. Each case's ``once`` is one run of it, and returns what it measured;
the median of all runs goes into the table. With words, only measurements whose names hold one
of them run, and nothing is written.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

MODULES = (
    "benchmarks.imports",
    "benchmarks.path",
    "benchmarks.kubernetes",
    "benchmarks.kubernetes_array",
)
"""The modules that define measurements; add a new one here."""

RESULTS = Path(__file__).with_name("RESULTS.md")
RUNS = 11


@dataclass(frozen=True)
class Case:
    """One subject of a measurement; ``once`` runs it once and returns the value in its unit."""

    subject: str
    once: Callable[[], float]


@dataclass(frozen=True)
class Measurement:
    """``target`` is the largest median that our own case, the first, should have."""

    name: str
    unit: str
    target: float | None
    runs: int
    cases: Callable[[], Iterator[Case]]


MEASUREMENTS: list[Measurement] = []


def measurement(
    name: str, *, unit: str, target: float | None = None, runs: int = RUNS
) -> Callable[[Callable[[], Iterator[Case]]], Callable[[], Iterator[Case]]]:
    """Register a generator of cases as a measurement."""

    def register(cases: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
        MEASUREMENTS.append(Measurement(name, unit, target, runs, cases))
        return cases

    return register


def seconds(work: Callable[[], object]) -> float:
    """The wall-clock time of one call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rows(entry: Measurement) -> list[str]:
    """The lines of the table for one measurement; its cases take turns, so that load hits all."""
    cases = list(entry.cases())
    values: dict[str, list[float]] = {case.subject: [] for case in cases}
    for _ in range(entry.runs):
        for case in cases:
            values[case.subject].append(case.once())
    lines = []
    for number, case in enumerate(cases):
        found = values[case.subject]
        aim = f"≤ {entry.target:g}" if entry.target is not None and number == 0 else ""
        lines.append(
            f"| {entry.name if number == 0 else ''} | {case.subject} |"
            f" {statistics.median(found):.4g} | {min(found):.4g}–{max(found):.4g} |"
            f" {entry.unit} | {aim} |"
        )
    return lines


def machine() -> str:
    """What the numbers were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
        f" {platform.machine()}, Python {platform.python_version()}"
    )


def main(words: list[str]) -> None:
    for module in MODULES:
        import_module(module)
    table = [
        "| what | subject | median | range | unit | aim |",
        "|---|---|---|---|---|---|",
    ]
    shown = 0
    for entry in MEASUREMENTS:
        if words and not any(word in entry.name for word in words):
            continue
        sys.stderr.write(f"measuring: {entry.name}\n")
        table += rows(entry)
        # Print each at once: the later ones take long.
        sys.stdout.write("\n".join(table[shown:]) + "\n")
        sys.stdout.flush()
        shown = len(table)
    if not words:
        header = f"# Benchmarks\n\nMeasured by `make bench` on {machine()}.\n\n"
        partial = RESULTS.with_suffix(".new")
        partial.write_text(header + "\n".join(table) + "\n", "utf-8")
        partial.replace(RESULTS)


if __name__ == "__main__":
    # Under `-m` this file is __main__; the measurements register themselves with its real name.
    import_module("benchmarks.run").main(sys.argv[1:])
