"""Handles as the record keeps them: an array of any size is one small JSON object.

A *group* is ``{"attempt": int, "elements": [first, last] | [[index, …]], "id": …}``, where ``id`` is
the text that all of them share, ``{"prefix", "suffix", "offset"}`` around the element's index
plus ``offset`` (``123[7].server``, ``123_7``), or the list of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from clustrix_containers.clusters.task import Handle

OFFSETS = (0, 1)
"""Schedulers count an array's elements from 0 or from 1."""


def pack(handles: Sequence[Handle]) -> list[dict[str, Any]]:
    """The groups of these handles."""
    groups = []
    for attempt, same in groupby(handles, key=lambda it: it.attempt):
        group = list(same)
        elements = [it.element for it in group]
        first, last = elements[0], elements[-1]
        packed = [first, last] if elements == list(range(first, last + 1)) else [elements]
        groups.append({"attempt": attempt, "elements": packed, "id": _pack_ids(group)})
    return groups


def unpack(groups: Sequence[Mapping[str, Any]], run: str) -> dict[int, Handle]:
    """The handle of each element; where an element is in several groups, the last one counts."""
    found: dict[int, Handle] = {}
    for group in groups:
        packed = group["elements"]
        elements = packed[0] if len(packed) == 1 else range(packed[0], packed[1] + 1)
        for element, identity in zip(elements, _ids(group["id"], elements), strict=True):
            found[element] = Handle(run, group["attempt"], element, identity)
    return found


def _pack_ids(handles: Sequence[Handle]) -> Any:
    ids = [handle.id for handle in handles]
    if len(set(ids)) == 1:
        return ids[0]
    first = handles[0]
    for offset in OFFSETS:
        for match in re.finditer(str(first.element + offset), first.id):
            prefix, suffix = first.id[: match.start()], first.id[match.end() :]
            if all(it.id == f"{prefix}{it.element + offset}{suffix}" for it in handles):
                return {"prefix": prefix, "suffix": suffix, "offset": offset}
    return ids


def _ids(packed: Any, elements: Sequence[int]) -> Iterator[str]:
    for position, element in enumerate(elements):
        if isinstance(packed, str):
            yield packed
        elif isinstance(packed, list):
            yield packed[position]
        else:
            yield f"{packed['prefix']}{element + packed['offset']}{packed['suffix']}"
