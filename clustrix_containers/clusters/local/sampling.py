"""How much memory a tree of processes holds, from ``/proc``: for where no cgroup can be had."""

from __future__ import annotations

import contextlib
import resource

from clustrix_containers import shell

_PAGE = resource.getpagesize()


def resident(pid: int) -> int:
    """Bytes: the resident sizes of a process and its descendants; shared pages count in each."""
    total = 0
    for process in shell.tree(pid):
        with (
            contextlib.suppress(OSError, ValueError, IndexError),
            open(f"/proc/{process}/statm", "rb") as file,
        ):
            total += int(file.read().split()[1]) * _PAGE
    return total


def proportional(pid: int) -> int:
    """Bytes: as :func:`resident`, but a page that n processes share counts 1/n in each.

    Costs more: the kernel walks the page tables. Where it is not told, the resident size.
    """
    total = 0
    for process in shell.tree(pid):
        try:
            with open(f"/proc/{process}/smaps_rollup", "rb") as file:
                total += (
                    next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
                )
        except (OSError, ValueError, StopIteration):
            with (
                contextlib.suppress(OSError, ValueError, IndexError),
                open(f"/proc/{process}/statm", "rb") as file,
            ):
                total += int(file.read().split()[1]) * _PAGE
    return total


def held(pid: int, limit: int) -> int:
    """Bytes held; the exact number is only asked for where the rough one is over the limit."""
    rough = resident(pid)
    return rough if rough <= limit else proportional(pid)
