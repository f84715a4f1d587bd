"""What goes into a manifest as JSON comes out as it was, type for type."""

from __future__ import annotations

import abc
import collections
import dataclasses
import datetime
import enum
import fractions
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.jobs import same
from trainer.checkpoint.errors import StateError
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.tree import decode, encode
from trainer.checkpoint.state.values.records import lost

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
    names: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    inner: Any
    later: int = 7


@dataclasses.dataclass
class _More:
    width: int

    def __post_init__(self) -> None:
        self.cache = [self.width]


class _Tagged(torch.Tensor):
    pass


@dataclasses.dataclass
class _Unset:
    later: int = dataclasses.field(init=False)


@dataclasses.dataclass
class _Keyed:
    key: str = dataclasses.field(default_factory=lambda: {}["KEY"])


@dataclasses.dataclass
class _Abstract(abc.ABC):
    width: int

    @abc.abstractmethod
    def step(self) -> None: ...


@dataclasses.dataclass
class _Mapping(dict[str, int]):
    width: int


@dataclasses.dataclass
class _Computed:
    width: int


_Computed.width = property(lambda self: 3)  # type: ignore[assignment]


_Twice = dataclasses.make_dataclass("_Twice", [("at", int)])
TENSORS = st.builds(
    lambda kind, grad: nn.Parameter(torch.ones(2), grad) if kind else torch.arange(3), st.booleans(), st.booleans()
)
ACCEPTED = st.recursive(
    LEAVES | RARE | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(PARTS, inner, max_size=3).map(collections.OrderedDict)
        | st.lists(inner, max_size=3).map(collections.deque)
        | st.builds(_Config, st.integers(), inner)
        | st.builds(_Frozen, inner)
    ),
    max_leaves=8,
)


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are equal and of the same types, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return same(a.detach(), b.detach()) and a.requires_grad == b.requires_grad
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return all(_alike(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return _alike(list(a.keys()), list(b.keys())) and _alike(list(a.values()), list(b.values()))
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, set | frozenset):
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    return repr(a) == repr(b)


@given(ACCEPTED)
def test_what_is_accepted_comes_back_the_same(value: Any) -> None:
    """Whatever a checkpoint takes: equal, and of the same type, also inside of other values."""
    packed = pack({"extra": value})
    text = json.dumps(packed.tree, allow_nan=False)
    back = decode(json.loads(text), lambda name: packed.tensors[name].clone())["extra"]

    assert _alike(back, value)


def test_a_dataclass_comes_back_without_its_methods() -> None:
    """A field that it has got since has its default. What its class cannot be made of is told, and never a dict."""
    old = json.loads(json.dumps(encode({"it": _Frozen(_Config(3, ("a",)))})))
    name, fields = old["it"]["$record"]
    assert decode(old) == {"it": _Frozen(_Config(3, ("a",)))}
    assert decode({"$record": [name, {"inner": 1}]}) == _Frozen(1, 7)
    for other, stored, why in (
        (name, {**fields, "gone": 1}, "no gone any more"),
        (name, {"later": 1}, "inner now, which has no default"),
        (name.replace("_Frozen", "_Colour"), fields, "not loaded here"),
        ("os:system", {}, "not loaded here"),
        ("pathlib:Path", {}, "not loaded here"),
        ("nowhere.at_all:Thing", {}, "not loaded here"),
        (f"{__name__}:_Keyed", {}, "cannot be made here: KeyError('KEY')"),
        (f"{__name__}:_Abstract", {"width": 1}, "cannot be made here: TypeError"),
        (f"{__name__}:_Mapping", {"width": 1}, "cannot be made here: TypeError"),
        (f"{__name__}:_Computed", {"width": 1}, "cannot be made here: AttributeError"),
    ):
        ((path, found),) = lost(decode({"a": [{"$record": [other, stored]}]}))
        assert (path, found.name) == ("a/0", other)
        assert why in found.why


def test_a_state_dict_keeps_the_versions_of_its_layers() -> None:
    """load_state_dict() looks at them."""
    state = nn.BatchNorm1d(2).state_dict()
    packed = pack({"extra": state})
    back = decode(packed.tree, packed.tensors.__getitem__)["extra"]
    assert type(back) is collections.OrderedDict
    assert (list(back), back._metadata) == (list(state), state._metadata)  # type: ignore[attr-defined]


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
    *(
        torch.float32,
        torch.device("cpu"),
        datetime.datetime(2020, 1, 1),
        fractions.Fraction(1, 3),
        _More(1),
        _Twice(1),
        _Unset(),
    ),
    *(torch.ones(2).as_subclass(_Tagged), nn.Buffer(torch.ones(1)).as_subclass(_Tagged)),
]


@pytest.mark.parametrize("value", _REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_come_back_is_refused_by_path(value: Any) -> None:
    """The error names where in the state it is."""
    with pytest.raises(StateError, match="extra/list/1/deep"):
        pack({"list": [0, {"deep": value}]}, "extra")


def test_what_contains_itself_is_refused() -> None:
    """A cycle is an error, not an endless walk."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(StateError, match="contains itself"):
        encode(value, "extra")
