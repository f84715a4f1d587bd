"""Boxes: what a rank holds of a tensor, as a part of the global tensor. Needs no torch.

    shape [6, 4], over 2 x 2 ranks      at [0, 0]  size [3, 2] | at [0, 2]  size [3, 2]
                                        at [3, 0]  size [3, 2] | at [3, 2]  size [3, 2]

The elements of a box lie one after another in C order, in memory as in a file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """The elements from `at` (inclusive) on, `size` of them in each dimension."""

    at: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def volume(self) -> int:
        return math.prod(self.size)

    def is_in(self, shape: Sequence[int]) -> bool:
        """Whether it is a box of a tensor of that shape."""
        return len(self.at) == len(self.size) == len(shape) and all(
            at >= 0 and size >= 0 and at + size <= end for at, size, end in zip(self.at, self.size, shape, strict=True)
        )

    def meet(self, other: Box) -> Box | None:
        """The elements that are in both; None if there are none."""
        at = tuple(map(max, self.at, other.at))
        size = tuple(
            min(a + n, b + m) - start
            for a, n, b, m, start in zip(self.at, self.size, other.at, other.size, at, strict=True)
        )
        return Box(at, size) if all(n > 0 for n in size) else None

    def within(self, outer: Box) -> Box:
        """This box, counted from the corner of `outer`."""
        return Box(tuple(a - b for a, b in zip(self.at, outer.at, strict=True)), self.size)

    @property
    def slices(self) -> tuple[slice, ...]:
        """It, as an index of the tensor that it is a box of."""
        return tuple(slice(at, at + size) for at, size in zip(self.at, self.size, strict=True))


def whole(shape: Sequence[int]) -> Box:
    """The box of all elements of a tensor of that shape."""
    return Box((0,) * len(shape), tuple(shape))


def runs(box: Box, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The elements of `box` in a tensor of that shape, in C order, as (first, count) of elements that lie one after
    another."""
    if not box.volume:
        return
    # The last dimensions that the box has whole are one run with the dimension before them.
    inner = len(shape)
    while inner > 0 and box.size[inner - 1] == shape[inner - 1]:
        inner -= 1
    row = math.prod(shape[inner:])
    if inner == 0:
        yield 0, row
        return
    strides = [math.prod(shape[axis + 1 :]) for axis in range(inner)]
    count = box.size[inner - 1] * row
    last = box.at[inner - 1] * row
    outer = (range(at, at + size) for at, size in zip(box.at[: inner - 1], box.size[: inner - 1], strict=True))
    for place in itertools.product(*outer):
        yield last + sum(map(int.__mul__, place, strides)), count


def is_one_run(box: Box, shape: Sequence[int]) -> bool:
    """Whether the elements of `box` lie one after another in a tensor of that shape."""
    found = runs(box, shape)
    next(found, None)
    return next(found, None) is None


def span(box: Box, shape: Sequence[int]) -> tuple[int, int]:
    """(first, count) of the elements of a tensor of that shape between the first and the last one of `box`."""
    if not box.volume:
        return 0, 0
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(map(int.__mul__, box.at, strides))
    last = sum((at + size - 1) * stride for at, size, stride in zip(box.at, box.size, strides, strict=True))
    return first, last + 1 - first


def check_cover(boxes: Sequence[Box], shape: Sequence[int]) -> None:
    """ValueError unless each element of a tensor of that shape is in exactly one of `boxes`. An empty tensor has one
    box; no box of any other tensor is empty."""
    total = math.prod(shape)
    if not all(box.is_in(shape) for box in boxes):
        raise ValueError("a box is outside of it")
    if not total:
        if list(boxes) != [whole(shape)]:
            raise ValueError("it is empty, and its box is another one")
        return
    if not all(box.volume for box in boxes):
        raise ValueError("a box is empty")
    if _overlap(boxes, len(shape)):
        raise ValueError("two boxes overlap")
    if sum(box.volume for box in boxes) != total:
        raise ValueError("its boxes leave a gap")


def _overlap(boxes: Sequence[Box], dimensions: int) -> bool:
    """Whether two of `boxes`, none of them empty, have an element in common."""
    if len(boxes) < 2:
        return False
    if dimensions == 0:
        return True
    # Swept along the dimension in which they differ most: few boxes are open at a time.
    axis = max(range(dimensions), key=lambda d: len({box.at[d] for box in boxes}))
    opened: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.at[axis]):
        opened = [other for other in opened if other.at[axis] + other.size[axis] > box.at[axis]]
        if any(box.meet(other) for other in opened):
            return True
        opened.append(box)
    return False


def rows_of(size: Sequence[int]) -> tuple[int, int, int]:
    """(axis, rows, elements in a row) of a box of that size. It is cut between rows: each part is a box again, and its
    elements lie one after another."""
    axis = next((axis for axis, count in enumerate(size) if count != 1), len(size))
    if axis == len(size):
        return 0, 1, 1
    return axis, size[axis], math.prod(size[axis + 1 :])


def cut(box: Box, first: int, last: int) -> Box:
    """The rows from `first` to `last` (exclusive, and not the same) of `box`."""
    axis, rows, _ = rows_of(box.size)
    if (first, last) == (0, rows):
        return box
    at, size = list(box.at), list(box.size)
    at[axis] += first
    size[axis] = last - first
    return Box(tuple(at), tuple(size))
