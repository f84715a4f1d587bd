"""The rarer types of a state, as tagged JSON and back: each comes back as the type that it was. See tree."""

from __future__ import annotations

import base64
import importlib
import pathlib
import re
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

from ...errors import StateError

TAGS = frozenset(
    f"${name}"
    for name in (
        "complex",
        "bytes",
        "path",
        "set",
        "frozenset",
        "deque",
        "ordered",
        "counter",
        "state_dict",
        "size",
        "numpy",
    )
)

_NUMPY_KINDS = "biufc"
_NUMPY_TYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
LARGEST = 1 << 20
"""The bytes of an array that is stored as text."""


def encode(value: Any, inner: Callable[[Any, Any], Any]) -> Any:
    """`value` with its tag, or None if it is of none of these types. `inner(item, key)` encodes what it holds under
    `key`."""
    kind = type(value)
    if kind is complex:
        return {"$complex": [inner(value.real, "real"), inner(value.imag, "imag")]}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind in (type(pathlib.Path()), type(pathlib.PurePath())):
        return {"$path": [str(value), isinstance(value, pathlib.Path)]}
    if kind is set or kind is frozenset:
        # The order of a set of texts differs from process to process. A state must not.
        items = [inner(item, number) for number, item in enumerate(value)]
        return {"$set" if kind is set else "$frozenset": sorted(items, key=repr)}
    if kind is deque:
        return {"$deque": [[inner(item, number) for number, item in enumerate(value)], value.maxlen]}
    if kind is OrderedDict or kind is Counter:
        pairs = [[inner(key, "key"), inner(one, key)] for key, one in value.items()]
        if more := dict(vars(value)):
            return (
                {"$state_dict": [pairs, inner(more["_metadata"], "_metadata")]} if list(more) == ["_metadata"] else None
            )
        return {"$ordered" if kind is OrderedDict else "$counter": pairs}
    if kind.__module__ == "torch" and kind.__qualname__ == "Size":
        return {"$size": [int(size) for size in value]}
    return _numpy(value, kind)


def _numpy(value: Any, kind: type) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or not (kind is numpy.ndarray or isinstance(value, numpy.generic)):
        return None
    # Objects, records, texts and times have no plain bytes; another byte order would not come back.
    if value.dtype.kind not in _NUMPY_KINDS or not value.dtype.isnative or value.dtype.hasobject:
        return None
    if value.nbytes > LARGEST:
        return None
    shape = list(value.shape) if kind is numpy.ndarray else None
    return {"$numpy": [value.dtype.str, shape, base64.b64encode(value.tobytes()).decode()]}


def decode(tag: str, given: Any, inner: Callable[[Any], Any]) -> Any:
    """The value that encode() had. ValueError or KeyError if it did not make this; StateError without numpy."""
    match tag, given:
        case "$complex", [real, imaginary]:
            return complex(inner(real), inner(imaginary))
        case "$bytes", str():
            return base64.b64decode(given, validate=True)
        case "$path", [str(text), bool(concrete)]:
            return pathlib.Path(text) if concrete else pathlib.PurePath(text)
        case "$set", list():
            return {inner(item) for item in given}
        case "$frozenset", list():
            return frozenset(inner(item) for item in given)
        case "$deque", [list(items), int() | None as maxlen]:
            if maxlen is not None and not len(items) <= maxlen < 1 << 62:
                raise ValueError(f"{len(items)} items in a deque of {maxlen}")
            return deque((inner(item) for item in items), maxlen)
        case "$ordered", list():
            return OrderedDict((inner(key), inner(one)) for key, one in given)
        case "$state_dict", [list(pairs), metadata]:
            state = OrderedDict((inner(key), inner(one)) for key, one in pairs)
            state._metadata = inner(metadata)  # type: ignore[attr-defined]
            return state
        case "$counter", list():
            return Counter({inner(key): inner(one) for key, one in given})
        case "$size", list():
            return module("torch").Size(inner(size) for size in given)
        case "$numpy", [str(name), list() | None as shape, str(text)]:
            return _from_numpy(name, shape, base64.b64decode(text, validate=True))
    raise ValueError(f"{tag} with {given!r:.80}")


def _from_numpy(name: str, shape: list[int] | None, raw: bytes) -> Any:
    if not _NUMPY_TYPE.fullmatch(name):
        raise ValueError(f"{name!r} is no type of numbers")
    numpy = module("numpy")
    array = numpy.frombuffer(raw, numpy.dtype(name))
    if shape is None:
        array = array.reshape(())
    elif any(type(size) is not int or not 0 <= size < 1 << 62 for size in shape):
        raise ValueError(f"{shape} is no shape")
    return array[()] if shape is None else array.reshape(shape).copy()


def module(name: str) -> Any:
    """The module of that name; StateError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise StateError(f"it holds values of {name}, which is not installed here") from None
