"""What a snapshot asks again only if it has changed: it is always what it would be if it were asked anew."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.state import rng
from trainer.checkpoint.state.packing import Packed, pack
from trainer.checkpoint.state.repacking import Repacker
from trainer.checkpoint.state.tensors import lie_as, place_of

KEPT: dict[str, Any] = {}
DRAWS = {
    "nothing": lambda: None,
    "python: a number": random.random,
    "python: a normal": lambda: random.gauss(0.0, 1.0),
    "python: seeded": lambda: random.seed(3),
    "python: keep": lambda: KEPT.update(python=random.getstate()),
    "python: put back": lambda: "python" in KEPT and random.setstate(KEPT["python"]),
    "numpy: a number": numpy.random.rand,
    "numpy: a normal": numpy.random.randn,
    "numpy: seeded": lambda: numpy.random.seed(3),
    "numpy: keep": lambda: KEPT.update(numpy=numpy.random.get_state(legacy=False)),
    "numpy: put back": lambda: "numpy" in KEPT and numpy.random.set_state(KEPT["numpy"]),
    "numpy: another one of its kind": lambda: _numpy_with(numpy.random.MT19937(5)),
    "numpy: one of another kind": lambda: _numpy_with(numpy.random.PCG64(5)),
    "torch: a number": lambda: torch.rand(1),
}


def _numpy_with(bits: Any) -> None:
    numpy.random.set_bit_generator(bits)
    KEPT.pop("numpy", None)  # a state of another kind would be refused


def flat(state: Any) -> Any:
    """`state` with tensors as bytes."""
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return bytes(state.numpy()) if isinstance(state, torch.Tensor) else (type(state), repr(state))


@contextlib.contextmanager
def twister() -> Iterator[None]:
    """numpy's generator is a Mersenne twister; afterwards all are as they were."""
    python, bits = random.getstate(), numpy.random.get_bit_generator()
    state = numpy.random.get_state(legacy=False)
    numpy.random.set_bit_generator(numpy.random.MT19937(1))
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_bit_generator(bits)
        numpy.random.set_state(state)


@given(st.lists(st.sampled_from(sorted(DRAWS)), max_size=12))
def test_generators(draws: list[str]) -> None:
    """Whatever is drawn, seeded, kept and put back."""
    KEPT.clear()
    with twister():
        for name in draws:
            DRAWS[name]()
            found = rng.capture()
            version, words, gauss = random.getstate()
            assert flat(found["numpy"]) == flat(rng._without_arrays(numpy.random.get_state(legacy=False)))
            assert found["python"]["version"] == version and repr(found["python"]["gauss"]) == repr(gauss)
            assert bytes(found["python"]["words"].numpy()) == b"".join(word.to_bytes(4, "little") for word in words)
            assert torch.equal(found["torch"], torch.get_rng_state())


def test_a_normal_in_store() -> None:
    """Taken by itself: the words stay as they are, and the state is another one."""
    with twister():
        numpy.random.randn()
        before = flat(rng.capture()["numpy"])
        numpy.random.randn()
        after = flat(rng.capture()["numpy"])
    assert before["state"] == after["state"] and before["has_gauss"] != after["has_gauss"]


def test_nothing_is_asked_twice() -> None:
    first, second = rng.capture(), rng.capture()
    assert second["numpy"] is first["numpy"] and second["python"] is first["python"]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]),
    st.sampled_from(["", "1"]),
    st.builds(torch.zeros, st.integers(0, 2), dtype=st.sampled_from([torch.float32, torch.int32, torch.bool])),
    st.lists(st.integers(0, 1), max_size=2),
)
STATES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from(["a", "b", 1, "1"]), inner, max_size=3))


def shown(packed: Packed) -> Any:
    """All that is in it; the tensors as they are, by name and in order."""
    return repr(packed.tree), list(packed.specs.items()), packed.visited, packed.marked, list(packed.tensors)


@given(st.lists(st.tuples(STATES, st.booleans()), max_size=6))
def test_a_small_state(states: list[tuple[Any, bool]]) -> None:
    """Split with a memory, or without: the same names, texts and types, in the same order, and the same memory."""
    repack = Repacker()
    for state, tied in states:
        given_state = {"first": state, "second": state if tied else None}
        ours, theirs = repack(given_state, "rank0"), pack(given_state, "rank0")
        assert shown(ours) == shown(theirs)
        pairs = zip(ours.tensors.values(), theirs.tensors.values(), strict=True)
        assert all(place_of(one) == place_of(other) for one, other in pairs)


def test_a_small_state_is_split_once() -> None:
    """As long as only values differ; and tensors that are tied for once are not tied for ever."""
    repack = Repacker()
    first = repack({"a": torch.ones(2), "b": torch.ones(2)})
    second = repack({"a": torch.zeros(2), "b": torch.zeros(2)})
    assert second.tree is first.tree and second.specs is first.specs and not second.tensors["a"].any()
    tied = torch.ones(2)
    assert len(Repacker()({"a": tied, "b": tied}).tensors) == 1
    repack = Repacker()
    repack({"a": tied, "b": tied})
    assert len(repack({"a": torch.ones(2), "b": torch.zeros(2)}).tensors) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.resize_(2, 2),
        lambda one: one.t_(),
        lambda one: one.unsqueeze_(0),
        lambda one: setattr(one, "data", one.data.clone()),
        lambda one: setattr(one, "data", one.data[1:]),
        lambda one: torch.utils.swap_tensors(one, torch.zeros(3, 4, dtype=torch.int32)),
    ],
)
def test_where_tensors_lie(change: Any) -> None:
    """The same objects are looked at again: what one of them holds may have been replaced."""
    tensors = [torch.zeros(3, 4), torch.zeros(2)]
    places = [place_of(tensor) for tensor in tensors]
    alive = [tensor.data for tensor in tensors]
    assert lie_as(tensors, list(tensors), places) and lie_as(alive, tensors, places)
    change(tensors[0])
    assert not lie_as(tensors, list(tensors), places)
    assert not lie_as(tensors[:1], tensors, places)
