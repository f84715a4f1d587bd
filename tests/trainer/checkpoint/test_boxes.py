"""The geometry of boxes, against tensors of element numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.format.boxes import Box, check_cover, cut, is_one_run, rows_of, runs, span, whole

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def _numbers(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@st.composite
def boxes_of(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that cover it once: it is cut again and again, anywhere."""
    shape = draw(SHAPES)
    parts = [whole(shape)]
    for _ in range(draw(st.integers(0, 6)) if math.prod(shape) else 0):
        box = parts.pop(draw(st.integers(0, len(parts) - 1)))
        axes = [axis for axis, n in enumerate(box.size) if n > 1]
        if not axes:
            parts.append(box)
            continue
        axis = draw(st.sampled_from(axes))
        n = draw(st.integers(1, box.size[axis] - 1))
        at, size, rest = list(box.at), list(box.size), list(box.size)
        at[axis], size[axis], rest[axis] = at[axis] + n, n, rest[axis] - n
        parts += [Box(box.at, tuple(size)), Box(tuple(at), tuple(rest))]
    return shape, draw(st.permutations(parts))


@given(data=st.data(), shape=SHAPES)
def test_runs_and_spans_are_those_of_the_elements(data: st.DataObject, shape: tuple[int, ...]) -> None:
    box = data.draw(boxes_of(shape))
    expected = _numbers(shape)[box.slices].reshape(-1).tolist()
    found = list(runs(box, shape))

    assert [n for first, count in found for n in range(first, first + count)] == expected
    assert is_one_run(box, shape) == (len(found) < 2)
    first, count = span(box, shape)
    if expected:
        assert (first, first + count) == (expected[0], expected[-1] + 1)


@given(data=st.data(), shape=SHAPES)
def test_two_boxes_meet_where_their_elements_do(data: st.DataObject, shape: tuple[int, ...]) -> None:
    one, two = data.draw(boxes_of(shape)), data.draw(boxes_of(shape))
    numbers = _numbers(shape)
    both = set(numbers[one.slices].reshape(-1).tolist()) & set(numbers[two.slices].reshape(-1).tolist())
    met = one.meet(two)

    assert (met is None) == (not both)
    if met is not None:
        assert set(numbers[met.slices].reshape(-1).tolist()) == both
        assert set(numbers[one.slices][met.within(one).slices].reshape(-1).tolist()) == both


@given(partitions())
def test_a_partition_covers(partition: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, parts = partition
    check_cover(parts, shape)


@given(partition=partitions(), data=st.data())
def test_what_is_no_partition_is_found(partition: tuple[tuple[int, ...], list[Box]], data: st.DataObject) -> None:
    """One box lost, one twice, one moved, one grown, one outside: each is found, whatever the shape."""
    shape, parts = partition
    number = data.draw(st.integers(0, len(parts) - 1))
    box, rest = parts[number], parts[:number] + parts[number + 1 :]
    wrong = [rest, [*parts, box]]
    if shape:
        axis = data.draw(st.integers(0, len(shape) - 1))
        by = data.draw(st.integers(1, 3)) * data.draw(st.sampled_from([1, -1]))
        moved = tuple(n + by * (d == axis) for d, n in enumerate(box.at))
        grown = tuple(n + by * (d == axis) for d, n in enumerate(box.size))
        wrong += [[*rest, Box(moved, box.size)], [*rest, Box(box.at, grown)], [*rest, Box(box.at[1:], box.size)]]
    for boxes in wrong:
        with pytest.raises(ValueError, match="box"):
            check_cover(boxes, shape)


@given(shape=SHAPES, data=st.data())
def test_rows_are_cut_where_elements_lie_one_after_another(shape: tuple[int, ...], data: st.DataObject) -> None:
    box = data.draw(boxes_of(shape))
    _, rows, row = rows_of(box.size)
    assert rows * row == box.volume
    if not rows:
        return
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    held = _numbers(shape)[box.slices].contiguous().reshape(-1)

    part = cut(box, first, last)
    assert part.is_in(shape)
    assert _numbers(shape)[part.slices].reshape(-1).tolist() == held[first * row : last * row].tolist()
