"""How much memory a tree of processes holds, from ``/proc``: for where no cgroup can be had."""

from __future__ import annotations

import contextlib
import resource

from clustrix_containers.remote import shell

_PAGE = resource.getpagesize()


def resident(pid: int) -> int:
    """Bytes: the resident sizes of a process and its descendants; shared pages count in each."""
    return sum(_resident(process) for process in shell.tree(pid))


def proportional(pid: int) -> int:
    """Bytes: as :func:`resident`, but a page that n processes share counts 1/n in each.

    Costs more: the kernel walks the page tables. Where it is not told, the resident size.
    """
    return sum(_proportional(process) or _resident(process) for process in shell.tree(pid))


def held(pid: int, limit: int) -> int:
    """Bytes held; the exact number is only asked for where the rough one is over the limit."""
    rough = resident(pid)
    return rough if rough <= limit else proportional(pid)


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(process: int) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/smaps_rollup", "rb") as f:
        for line in f:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return 0
