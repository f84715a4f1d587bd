"""Slurm's short form of a list of nodes, n[01-03,7]-ib,x5, written out as `scontrol show hostnames` writes it."""

from __future__ import annotations

import re

MOST = 1 << 16
"""Nodes in a list, as in Slurm (MAX_SLURM_NODES)."""
_ITEM = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand(nodelist: str) -> list[str]:
    """The names, in the list's order: the first one is the node where the job's batch script runs.

    ValueError if that is no list of nodes.
    """
    items = _ITEM.findall(nodelist)
    if ",".join(items) != nodelist or not items:
        raise ValueError(f"{nodelist!r} is no list of nodes")
    names = [name for item in items for name in _item(item)]
    if len(names) > MOST:
        raise ValueError(f"{nodelist!r} is a list of {len(names)} nodes")
    return names


def _item(item: str) -> list[str]:
    """r[1-2]c[3-4]: the last bracket counts fastest."""
    names = [""]
    for ranges, text in _PART.findall(item):
        values = [text] if text else [number for each in ranges.split(",") for number in _range(each)]
        if len(names) * len(values) > MOST:
            raise ValueError(f"{item!r} is a list of {len(names) * len(values)} nodes")
        names = [name + value for name in names for value in values]
    return names


def _range(text: str) -> list[str]:
    """08-11: as wide as its first number is written."""
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no range of node numbers")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 0 <= last - first < MOST:
        raise ValueError(f"{text!r} is no range of node numbers")
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
