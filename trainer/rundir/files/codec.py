"""Our JSON as typed values, and back. Decoding is the check: a value that does not fit its type is damage.

A kind is a class with typed fields (a msgspec.Struct, a dataclass), or list[str] and the like. Unknown fields are
ignored, unless the kind is a Struct that forbids them. A field without a default must be there. Files may come from
anybody: for any bytes, decode() returns a value of that kind or raises ValueError with one line.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from .untrusted_files import LIMIT, read_file

T = TypeVar("T")

Seconds = Annotated[float, msgspec.Meta(ge=0)]

_DEEPEST = 400
"""The deepest nesting of brackets. The state in a snapshot's sidecar has at most 300. Deeper JSON was not written by
us, and code that walks it would fail."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""Perhaps half a character, from a file name that is not text: msgspec refuses it."""
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
"""The digits of a number that may be beyond 64 bits: msgspec accepts it."""
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^][{}"]+')
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}
_STEPS = bytes(1 if byte in b"[{" else 2 for byte in range(256))


def decode(text: bytes, kind: type[T], unique: bool = False) -> T:
    """The value of that kind in the JSON `text`. ValueError says what does not fit, and where. int() and float() of its
    numbers do not fail: they are finite, and floats beyond 64 bits. `unique`: a key that occurs twice is damage too;
    otherwise the last one counts."""
    try:
        if not text.isascii():
            text.decode()  # msgspec does not check the fields that it ignores
        odd = unique or _HALF.search(text) or _LONG in text.translate(_DIGITS)
        value: T = msgspec.convert(_parsed(text, unique), kind) if odd else _decoder(kind).decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count(b"[") + text.count(b"{") > _DEEPEST and _depth(text) > _DEEPEST:
        raise ValueError("it is nested too deeply")
    return value


def read(path: Path, kind: type[T], limit: int = LIMIT, unique: bool = False) -> T:
    """decode() of the file; OSError if it cannot be read, ValueError if it is damaged."""
    return decode(read_file(path, limit), kind, unique)


def encode(value: Any, indent: int = 0) -> bytes:
    """`value` as JSON; decode() gives the same value back. A number that is not finite becomes null. A value that JSON
    does not have becomes its text."""
    try:
        text = msgspec.json.encode(value, enc_hook=str)
        return msgspec.json.format(text, indent=indent) if indent else text
    except UnicodeEncodeError:
        # Half a character: only json can write it, but json does not write null for a number.
        plain = json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=str))
        return json.dumps(json.loads(plain, parse_constant=lambda _: None), indent=indent or None).encode()


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    if kind not in _DECODERS:
        _DECODERS[kind] = msgspec.json.Decoder(kind)
    return _DECODERS[kind]


def _parsed(text: bytes, unique: bool) -> Any:
    once = _once if unique else None
    return json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_refused, object_pairs_hook=once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice[:40]!r} twice")
    return body


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _whole(text: str) -> int | float:
    # 19 digits and a sign: a longer one is not even converted.
    value = int(text) if len(text) <= 20 else 1 << 64
    return value if -(1 << 63) <= value < 1 << 63 else _finite(text)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not a number that any file of ours holds")


def _depth(text: bytes) -> int:
    steps = _BRACKETS.sub(b"", text).translate(_STEPS)
    return max(accumulate(1 if step == 1 else -1 for step in steps), default=0)
