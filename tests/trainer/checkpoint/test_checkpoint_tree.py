"""What goes into a manifest as JSON comes out as it was, type for type."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any

import pytest
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


@given(VALUES)
def test_round_trip(value: Any) -> None:
    """Ints of any size, nan and inf, -0.0, tuples, dicts with any keys and in their order: through JSON text and
    back."""
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))

    assert same(back, value)
    assert repr(back) == repr(value)


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


@pytest.mark.parametrize("value", [{1, 2}, b"raw", _Color.RED, Path("x"), 1j, object(), _Config, lambda: 0])
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
