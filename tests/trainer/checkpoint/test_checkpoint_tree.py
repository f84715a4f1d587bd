"""What goes into a manifest as JSON comes out as it was, type for type."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import same
from trainer.checkpoint.errors import StateError
from trainer.checkpoint.state.tree import decode, encode

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["$tuple", "$float"])
KEYS = st.text() | st.integers() | st.none() | st.sampled_from(["$dict", "$tensor", "$int"]) | st.tuples(st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)
PARTS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
NUMBERS = st.sampled_from([np.int64, np.uint8, np.float32, np.float64, np.float16, np.bool_, np.complex64])
ARRAYS = st.builds(
    lambda kind, shape: np.arange(6).reshape(shape).astype(kind), NUMBERS, st.sampled_from([(6,), (2, 3)])
)
RARE = (
    st.complex_numbers()
    | st.binary()
    | st.text("ab/.", min_size=1).map(Path)
    | st.text("ab/.", min_size=1).map(PurePosixPath)
    | st.sets(PARTS)
    | st.frozensets(PARTS)
    | st.builds(collections.deque, st.lists(PARTS, max_size=3), st.none() | st.integers(3, 9))
    | st.dictionaries(PARTS, PARTS).map(collections.OrderedDict)
    | st.lists(st.text()).map(collections.Counter)
    | st.lists(st.integers(0, 9)).map(torch.Size)
    | st.builds(lambda kind, value: kind(value), NUMBERS, st.integers(0, 200))
    | ARRAYS
    | st.builds(lambda kind: kind(3)[()], st.just(np.zeros))
    | st.sampled_from([np.array(1.5), np.zeros((0, 3))])
)


@given(VALUES)
def test_round_trip(value: Any) -> None:
    """Ints of any size, nan and inf, -0.0, tuples, dicts with any keys and in their order: through JSON text and
    back."""
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))

    assert same(back, value)
    assert repr(back) == repr(value)


@given(st.recursive(RARE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_rarer_types_come_back_as_they_were(value: Any) -> None:
    """Sets, deques, bytes, paths, counters, numbers and arrays of numpy: the same value of the same type."""
    text = json.dumps(encode(value), allow_nan=False)
    back = decode(json.loads(text))

    assert json.dumps(encode(back), allow_nan=False) == text
    assert repr(back) == repr(value) or _unordered(value)
    assert type(back) is type(value)
    if isinstance(value, collections.deque):
        assert back.maxlen == value.maxlen


def _unordered(value: Any) -> bool:
    """Whether sets are in it, whose text has no order."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, set | frozenset) or any(_unordered(inner) for inner in inside)


def test_negative_zero_keeps_its_sign() -> None:
    """-0.0 is another number than 0.0 to an optimizer."""
    assert math.copysign(1, decode(json.loads(json.dumps(encode(-0.0))))) == -1


@dataclasses.dataclass
class _Config:
    width: int
    names: tuple[str, ...]


def test_dataclasses_become_dicts() -> None:
    """A config comes back as the dict of its fields."""
    assert decode(encode({"config": _Config(3, ("a",))})) == {"config": {"width": 3, "names": ("a",)}}


class _Color(enum.Enum):
    RED = 1


class _Level(enum.IntEnum):
    LOW = 1


class _Word(str):
    pass


_Pair = collections.namedtuple("_Pair", "a b")
_REFUSED = [
    *(_Color.RED, object(), _Config, lambda: 0, _Level.LOW, _Word("x"), _Pair(1, 2), collections.defaultdict(list)),
    *(np.array(["text"]), np.array([1], dtype=">i4"), np.zeros(1 << 18), np.array([object()]), np.str_("x")),
    *(np.datetime64("2020-01-01"), torch.Generator(), range(3), bytearray(b"x")),
]


@pytest.mark.parametrize("value", _REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_come_back_is_refused_by_path(value: Any) -> None:
    """The error names where in the state it is."""
    with pytest.raises(StateError, match="extra/list/1/deep"):
        encode({"list": [0, {"deep": value}]}, "extra")


def test_what_contains_itself_is_refused() -> None:
    """A cycle is an error, not an endless walk."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(StateError, match="contains itself"):
        encode(value, "extra")
