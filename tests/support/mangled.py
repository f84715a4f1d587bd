"""Bytes and values as no writer of ours leaves them: for the readers of all that lies on a disk."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
FAST = settings(SLOW, max_examples=200)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, 0.5])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\x00", "../..", "step-00000001", "\ud800", "9" * 5000, "kill"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_DEEP = [b"[" * 5000, b'{"a":' * 5000, b"[" * 5000 + b"]" * 5000]
_JUNK = st.binary(max_size=40) | st.sampled_from(
    [b"\xff\xfe", b"\0" * 64, b"1" + b"0" * 5000, b"NaN", b"1e999", *_DEEP]
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(child, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def _removed(value: Any, path: tuple[Any, ...]) -> Any:
    if len(path) == 1:
        copy = dict(value) if isinstance(value, dict) else list(value)
        del copy[path[0]]
        return copy
    return {**value, path[0]: _removed(value[path[0]], path[1:])} if isinstance(value, dict) else value


@st.composite
def values(draw: st.DrawFn, valid: Any) -> Any:
    """`valid`, with up to three parts of it lost or of another kind; or any value at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(valid)))
        if path and draw(st.booleans()) and draw(st.booleans()):
            valid = _removed(valid, path)
        else:
            valid = replaced(valid, path, draw(VALUES))
    return valid


def as_json(value: Any) -> bytes:
    """NaN, endless numbers and lone surrogates included."""
    return json.dumps(value).encode()


@st.composite
def mangled(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with bits flipped, parts cut out, doubled, overwritten or put in; or any bytes at all."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(("flip", "cut", "end", "double", "over", "in", "all"))):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:to]
            case "end":
                del data[at:]
            case "double":
                data[to:to] = data[at:to]
            case "over":
                junk = draw(_JUNK)
                data[at : at + len(junk)] = junk
            case "in":
                data[at:at] = draw(_JUNK)
            case "all":
                data = bytearray(draw(_JUNK))
    return bytes(data)


def files(valid: Any) -> st.SearchStrategy[bytes]:
    """What a file may hold that should hold the JSON value `valid`."""
    return mangled(json.dumps(valid).encode()) | values(valid).map(as_json)


@contextmanager
def bounded(seconds: float = 5.0, megabytes: int = 512) -> Iterator[None]:
    """It takes neither long nor much."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes << 10


def is_one_line(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text.strip() and len(text) < 1000
