"""The search of every world that a model of several nodes can come to."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.support.nodes_model import Model, Overlap


@dataclass
class Explored:
    worlds: int = 0
    launches: int = 0
    """Those of a second attempt or a later one."""
    trace: tuple[str, ...] = ()
    fault: str = ""


def explore(model: Model, settles: int = 1, most: int | None = None) -> Explored:
    """Every world that can be reached, breadth first, or the `most` that are reached first. The fault is the first one
    found, with the steps to it. One world of `settles` must settle, too (0: none)."""
    first = model.begin()
    parents: dict[int, tuple[int, str]] = {first.key(): (0, "")}
    layer, found, well = [(first.key(), first)], Explored(), set[int]()

    def trace(key: int) -> tuple[str, ...]:
        names: list[str] = []
        while key:
            key, name = parents[key]
            names.append(name)
        return tuple(reversed(names[:-1]))

    while layer:
        following = []
        for key, world in layer:
            if found.worlds == most:
                return found
            found.worlds += 1
            try:
                if settles and found.worlds % settles == 0 and not model.settles(world, well):
                    found.trace, found.fault = trace(key), "it never settles"
                    return found
                for name, after in model.steps(world):
                    again = after.key()
                    if again not in parents:
                        parents[again] = (key, sys.intern(name))
                        following.append((again, after))
                        found.launches += after.state.attempt > max(0, world.state.attempt)
            except Overlap as fault:
                found.trace, found.fault = (*trace(key), "look"), str(fault)
                return found
        layer = following
    return found
