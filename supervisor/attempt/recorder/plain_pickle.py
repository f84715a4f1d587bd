"""Reads pickles of plain containers: dicts, lists, tuples, texts, numbers, True, False, None. Nothing else.

torch's flight recorder writes such files. An opcode that could name a class or call anything is refused, so a file from
somebody else runs no code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_MARK = object()


def loads(data: bytes) -> Any:
    """The value in `data`. ValueError if there is none, or one that is not plain."""
    try:
        return _Reader(data).read()
    except (
        IndexError,
        KeyError,
        OverflowError,
        MemoryError,
        struct.error,
        TypeError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise ValueError(f"no plain pickle: {error!r}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        while True:
            code = self._take(1)
            if code == b".":
                return self.pop()
            _CODES[code](self)

    def _take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._data):
            raise ValueError("it ends too early")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def text(self, form: str) -> None:
        self.push(self._take(self.number(form)).decode(errors="surrogatepass"))

    def whole(self, form: str) -> None:
        self.push(int.from_bytes(self._take(self.number(form)), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) != count or _MARK in values:
            raise ValueError("a tuple lacks values")
        del self._stack[-count:]
        self.push(values)

    def marked(self) -> list[Any]:
        """The values since the newest mark, which are taken from the stack with it."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("something is added to what is no list")
        self._stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict) or len(values) % 2:
            raise ValueError("something is put into what is no dict")
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def put(self, form: str) -> None:
        self._memo[self.number(form)] = self._stack[-1]

    def get(self, form: str) -> None:
        self.push(self._memo[self.number(form)])

    def pop(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self._stack.pop()


def _item(reader: _Reader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.set_items([key, value])


_CODES: dict[bytes, Callable[[_Reader], Any]] = {
    b"\x80": lambda r: r.number("B"),
    b"\x95": lambda r: r.number("<Q"),
    b"(": lambda r: r.push(_MARK),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"K": lambda r: r.push(r.number("B")),
    b"M": lambda r: r.push(r.number("<H")),
    b"J": lambda r: r.push(r.number("<i")),
    b"G": lambda r: r.push(r.number(">d")),
    b"\x8a": lambda r: r.whole("B"),
    b"\x8b": lambda r: r.whole("<i"),
    b"\x8c": lambda r: r.text("B"),
    b"X": lambda r: r.text("<I"),
    b"]": lambda r: r.push([]),
    b"}": lambda r: r.push({}),
    b")": lambda r: r.push(()),
    b"\x85": lambda r: r.tuple_of(1),
    b"\x86": lambda r: r.tuple_of(2),
    b"\x87": lambda r: r.tuple_of(3),
    b"t": lambda r: r.push(tuple(r.marked())),
    b"a": lambda r: r.append([r.pop()]),
    b"e": lambda r: r.append(r.marked()),
    b"s": _item,
    b"u": lambda r: r.set_items(r.marked()),
    b"q": lambda r: r.put("B"),
    b"r": lambda r: r.put("<I"),
    b"\x94": lambda r: r._memo.__setitem__(len(r._memo), r._stack[-1]),
    b"h": lambda r: r.get("B"),
    b"j": lambda r: r.get("<I"),
}
