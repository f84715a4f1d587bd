"""decode(): of any bytes a value of the kind that was asked for, or a ValueError in one line; and encode() the way
back."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mangled import FAST, VALUES, bounded, files, is_one_line
from trainer.rundir.files.codec import decode, encode


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Inner:
    ok: bool
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True)
class Outer:
    """One field of every type that our files have."""

    count: int
    seconds: float = 0.5
    name: str = ""
    maybe: int | None = None
    parts: tuple[str, ...] = ()
    steps: Mapping[int, float] = field(default_factory=dict)
    inner: tuple[Inner, ...] = ()


WHOLE = {
    "count": 3,
    "seconds": 1.5,
    "name": "x",
    "maybe": None,
    "parts": ["a", "\udcff"],
    "steps": {"7": 2.0},
    "inner": [{"ok": True, "colour": "red"}],
    "of a newer version": [1],
}


def _is_sound(outer: Outer) -> bool:
    return (
        type(outer.count) is int
        and -(2**63) <= outer.count < 2**63
        and type(outer.seconds) is float
        and math.isfinite(outer.seconds)
        and type(outer.name) is str
        and (outer.maybe is None or type(outer.maybe) is int)
        and all(type(part) is str for part in outer.parts)
        and all(type(k) is int and type(v) is float and math.isfinite(v) for k, v in outer.steps.items())
        and all(type(inner.ok) is bool and isinstance(inner.colour, Colour) for inner in outer.inner)
    )


@FAST
@given(data=st.data(), unique=st.booleans())
def test_any_bytes_are_a_sound_value_or_damage(data: st.DataObject, unique: bool) -> None:
    """Every field is of its type, and every number can be counted with; what comes out can be kept and read again."""
    raw = data.draw(files(WHOLE))
    try:
        with bounded():
            outer = decode(raw, Outer, unique)
    except ValueError as error:
        assert is_one_line(error)
        return
    assert _is_sound(outer)
    assert decode(encode(outer), Outer) == outer


@FAST
@given(value=VALUES)
def test_both_ways_to_read_agree(value: Any) -> None:
    """What json writes is read as the same value whether a number is long, half a character is in it, or neither; a
    number beyond 64 bits is a float, and one that is not finite is damage."""
    raw = json.dumps(value).encode()
    try:
        found = decode(raw, Any), decode(raw, Any, unique=True)
    except ValueError:
        assert b"NaN" in raw or b"Infinity" in raw or b"0" * 400 in raw
        return
    near = json.loads(raw, parse_int=lambda text: int(text) if -(2**63) <= int(text) < 2**63 else float(text))
    assert found == (near, near)


@FAST
@given(value=VALUES)
def test_what_is_written_is_read(value: Any) -> None:
    """encode() takes any value, half a character and numbers that are not finite among them."""

    def kept(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: kept(child) for key, child in part.items()}
        if isinstance(part, list):
            return [kept(child) for child in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    for indent in (0, 1):
        assert json.loads(encode(value, indent)) == kept(value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"count": "3"}', "`$.count`"),
        (b'{"count": 3.0}', "`$.count`"),
        (b'{"count": true}', "`$.count`"),
        (b'{"count": 3, "seconds": false}', "`$.seconds`"),
        (b'{"count": 3, "inner": [{"ok": true, "colour": "blue"}]}', "`$.inner[0].colour`"),
        (b'{"name": "x"}', "count"),
        (b"[]", "array"),
        (b"", "truncated"),
        (b'{"count": 3}{"count": 3}', "trailing"),
        (b'{"count": 9223372036854775808}', "`$.count`"),
        (b'{"count": 3, "seconds": 1e999}', "out of range"),
        (b'{"count": 3, "newer": ' + b"[" * 401 + b"]" * 401 + b"}", "too deeply"),
        (b'{"count": 3, "newer": ' + b"[" * 9000 + b"]" * 9000 + b"}", "too deeply"),
    ],
)
def test_damage_says_what_and_where(raw: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as damage:
        decode(raw, Outer)
    assert says in str(damage.value)
    assert is_one_line(damage.value)


def test_a_key_twice() -> None:
    """Refused where that matters, at any depth; else the last one counts."""
    raw = b'{"count": 1, "count": 2, "steps": {"1": 1, "2": 2}}'
    assert decode(raw, Outer).count == 2
    for twice in (raw, b'{"count": 1, "steps": {"1": 1, "1": 2}}'):
        with pytest.raises(ValueError, match="twice"):
            decode(twice, Outer, unique=True)


def test_brackets_in_text_are_no_depth() -> None:
    deep = {"count": 3, "name": '\\"' + "[" * 1000, "parts": ["{" * 1000], "newer": [[]] * 1000}
    assert decode(json.dumps(deep).encode(), Outer).name == deep["name"]
