"""The plan covers every element once and shares the bytes out evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.format.plan import ITEM_BYTES, Spec, plan

SPECS = st.builds(Spec, st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3).map(tuple))
TENSORS = st.dictionaries(st.text("abc", min_size=1, max_size=3), SPECS, max_size=8)


@given(tensors=TENSORS, world_size=st.integers(1, 9), piece_bytes=st.integers(1, 200))
def test_every_element_is_written_once(tensors: dict[str, Spec], world_size: int, piece_bytes: int) -> None:
    """In order, without gaps, without overlaps, in pieces no larger than the cap; an empty tensor has a piece too."""
    at: dict[str, int] = {}
    for share in (share for shares in plan(tensors, world_size, piece_bytes) for share in shares):
        assert share.start == at.get(share.name, 0)
        assert share.count * ITEM_BYTES[tensors[share.name].dtype] <= max(piece_bytes, 8)
        at[share.name] = share.start + share.count

    assert at == {name: spec.count for name, spec in tensors.items()}


@given(tensors=TENSORS, world_size=st.integers(1, 9), piece_bytes=st.integers(1, 200))
def test_shares_are_equal_but_for_an_element(tensors: dict[str, Spec], world_size: int, piece_bytes: int) -> None:
    """No rank writes more than its part and one element at each end."""
    total = sum(spec.bytes for spec in tensors.values())
    for shares in plan(tensors, world_size, piece_bytes):
        written = sum(share.count * ITEM_BYTES[tensors[share.name].dtype] for share in shares)
        assert abs(written - total / world_size) < 16


@given(tensors=TENSORS, world_size=st.integers(1, 9), data=st.data())
def test_rank_0_writes_what_it_leads(tensors: dict[str, Spec], world_size: int, data: st.DataObject) -> None:
    """Some tensors belong to rank 0 alone; every other is shared out as if they were not there."""
    led = data.draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    shares = plan(tensors, world_size, 64, led)
    rest = plan({name: spec for name, spec in tensors.items() if name not in led}, world_size, 64)

    assert not [share for own in shares[1:] for share in own if share.name in led]
    assert tuple(tuple(share for share in own if share.name not in led) for own in shares) == rest
    written = [share for share in shares[0] if share.name in led]
    assert {name: sum(s.count for s in written if s.name == name) for name in led} == {
        name: tensors[name].count for name in led
    }


@given(tensors=TENSORS, world_size=st.integers(1, 4))
def test_every_rank_computes_the_same(tensors: dict[str, Spec], world_size: int) -> None:
    """The plan depends on nothing but its arguments, and elements stay aligned in every file."""
    first, second = plan(tensors, world_size), plan(dict(tensors), world_size)

    assert first == second
    for shares in first:
        sizes = [ITEM_BYTES[tensors[share.name].dtype] for share in shares]
        assert sizes == sorted(sizes, reverse=True)
