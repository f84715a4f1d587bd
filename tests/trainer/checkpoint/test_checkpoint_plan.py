"""The plan covers every element once and shares the bytes out evenly."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.format.boxes import Box, check_cover, rows_of, whole
from trainer.checkpoint.format.manifest import table, tensors_of
from trainer.checkpoint.format.plan import ITEM_BYTES, Layout, Spec, plan, shared_out

SPECS = st.builds(Spec, st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3).map(tuple))
TENSORS = st.dictionaries(st.text("abc", min_size=1, max_size=3), SPECS, max_size=8)


def _check(layout: Layout) -> None:
    """Each tensor is covered once, by one box a rank at most; a share is a run of what its rank holds."""
    for name, spec in layout.specs.items():
        mine = [[share for share in own if share.name == name] for own in layout.shares]
        assert all(len(own) <= 1 for own in mine)
        check_cover([share.box for own in mine for share in own], spec.shape)
        assert all(share.count == share.box.volume for own in mine for share in own)
    for own in layout.shares:
        sizes = [ITEM_BYTES[layout.specs[share.name].dtype] for share in own]
        assert sizes == sorted(sizes, reverse=True), "elements stay aligned in every file"


def _row(spec: Spec) -> int:
    return rows_of(spec.shape)[2] * ITEM_BYTES[spec.dtype]


@given(tensors=TENSORS, world_size=st.integers(1, 9))
def test_every_element_is_written_once(tensors: dict[str, Spec], world_size: int) -> None:
    layout = plan(tensors, world_size)
    _check(layout)
    assert layout == plan(dict(tensors), world_size), "every rank computes the same"
    assert {name: stored.spec for name, stored in tensors_of(table(layout)).items()} == tensors


@given(tensors=TENSORS, world_size=st.integers(1, 9))
def test_shares_are_equal_but_for_a_row(tensors: dict[str, Spec], world_size: int) -> None:
    """No rank writes more than its part and half a row at each end."""
    total = sum(spec.bytes for spec in tensors.values())
    widest = max((_row(spec) for spec in tensors.values()), default=0)
    for shares in plan(tensors, world_size).shares:
        written = sum(share.count * ITEM_BYTES[tensors[share.name].dtype] for share in shares)
        assert abs(written - total / world_size) <= widest + 1


@given(tensors=TENSORS, world_size=st.integers(1, 9), data=st.data())
def test_rank_0_writes_what_it_leads(tensors: dict[str, Spec], world_size: int, data: st.DataObject) -> None:
    """Some tensors belong to rank 0 alone; every other is shared out as if they were not there."""
    led = data.draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    layout = plan(tensors, world_size, led)
    rest = plan({name: spec for name, spec in tensors.items() if name not in led}, world_size)

    _check(layout)
    assert not [share for own in layout.shares[1:] for share in own if share.name in led]
    if world_size > 1:
        assert tuple(tuple(s for s in own if s.name not in led) for own in layout.shares) == rest.shares


@given(data=st.data(), rows=st.integers(1, 3), columns=st.integers(1, 3), copies=st.integers(1, 2))
def test_holders_of_a_box_share_it(data: st.DataObject, rows: int, columns: int, copies: int) -> None:
    """A grid of boxes, each held by some ranks, beside a tensor that all have: each rank writes of what it holds."""
    world = rows * columns * copies
    size = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    grid = {
        Box((i * size[0], j * size[1]), size): [i * columns + j + c * rows * columns for c in range(copies)]
        for i in range(rows)
        for j in range(columns)
    }
    specs = {"w": Spec("F32", (rows * size[0], columns * size[1])), "b": Spec("BF16", (5,))}
    held: dict[str, Any] = {"w": grid, "b": {whole((5,)): list(range(world))}}
    layout = shared_out(specs, held, world)

    _check(layout)
    for rank, own in enumerate(layout.shares):
        for share in own:
            inside = [box for box, ranks in held[share.name].items() if rank in ranks]
            assert any(box.meet(share.box) == share.box for box in inside)
