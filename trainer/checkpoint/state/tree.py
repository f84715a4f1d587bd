"""Nested plain values as JSON and back, exactly. Tensors are not in the JSON; their names are.

    None bool int float str list, dict with text keys    as JSON has them
    tuple                     {"$tuple": [...]}
    any other dict            {"$dict": [[key, value], ...]}
    nan, inf, -inf            {"$float": "nan"}
    complex                   {"$complex": [real, imaginary]}, each as a float
    int beyond 64 bits        {"$int": "0x1f..."}
    tensor                    {"$tensor": name}
    bytes                     {"$bytes": base64}
    a path                    {"$path": text}
    set, frozenset            {"$set": [...]}, {"$frozenset": [...]}
    deque                     {"$deque": [[...], maxlen]}
    OrderedDict, Counter      {"$ordered": [[key, value], ...]}, {"$counter": [[key, value], ...]}
    a module's state_dict()   {"$state_dict": [[[key, value], ...], metadata]}: an OrderedDict with versions of layers
    torch.Size                {"$size": [...]}
    numpy scalar, array       {"$numpy": [type, shape, base64]}; shape is null for a scalar
    Parameter                 {"$parameter": [name, requires_grad]}; in a model's state a tensor, since only its values
                              go into the model
    PerRank                   {"$per_rank": path}; comes back as a Reference. The value is in its rank's own file
    dataclass                 {"$record": [class, fields]} (see records)

Anything else, and any other class that is derived from one of these, is a StateError that names its path: a value that
cannot come back exactly is not stored.
"""

from __future__ import annotations

import enum
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..errors import StateError
from .marks import PerRank, Reference
from .values import rare, records

MAX_DEPTH = 100
_AS_IT_IS = frozenset((str, bool, type(None)))
_NUMBERS, _FAR = frozenset((int, float)), 2**63
"""A number that is nearer to 0 than `_FAR` is stored as it is; nan and infinities are not."""
_OF_A_MODEL = re.compile(r"(model|rank\d+/(buffers|model))/")

Namer = Callable[[Any, str], "str | None"]
"""(value, path) -> the name under which a tensor is stored, or None if the value is not a tensor."""


def _no_tensors(value: Any, path: str) -> None:
    return None


def _child(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)


def encode(value: Any, path: str = "", name_of: Namer = _no_tensors, depth: int = 0) -> Any:
    """JSON values that decode() turns back into `value`, with tuples, int keys and nan."""
    if depth > MAX_DEPTH:
        raise StateError(f"{path}: nested more than {MAX_DEPTH} deep, or contains itself")
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return _encode_items(value, path, name_of, depth)
    if kind is tuple:
        return {"$tuple": _encode_items(value, path, name_of, depth)}
    if kind is dict:
        return _encode_dict(value, path, name_of, depth)
    if (name := name_of(value, path)) is not None:
        return {"$per_rank": name} if isinstance(value, PerRank) else _encode_tensor(value, kind, path, name)
    if isinstance(value, PerRank):
        raise StateError(f"{path} is a PerRank value where there are no ranks: give the value itself")
    if (
        rarer := rare.encode(value, lambda inner, key: encode(inner, _child(path, key), name_of, depth + 1))
    ) is not None:
        return rarer
    if records.is_record(value):
        name = records.name_of(value, path or "the state")
        return {"$record": [name, _encode_dict(records.fields_of(value), path, name_of, depth)]}
    raise StateError(f"{path or 'the state'} is a {kind.__module__}.{kind.__qualname__}, {_advice(value)}")


def _encode_tensor(value: Any, kind: type, path: str, name: str) -> Any:
    # Of a model's tensors only the values come back. One of which a rank has a part (DTensor) is made for its place.
    which = f"{kind.__module__}.{kind.__qualname__}"
    if which == "torch.Tensor" or _OF_A_MODEL.match(path) or hasattr(value, "_local_tensor"):
        return {"$tensor": name}
    if which == "torch.nn.parameter.Parameter":
        return {"$parameter": [name, value.requires_grad]}
    raise StateError(
        f"{path} is a {which}, a tensor of which a checkpoint cannot hold the class: give .as_subclass(torch.Tensor) "
        "of it"
    )


def _advice(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return "of which a checkpoint cannot hold the class: give its .value"
    if isinstance(size := getattr(value, "nbytes", None), int) and size > rare.LARGEST:
        return f"of {size} bytes, which would be stored as text: give torch.from_numpy(...) of it"
    base = next((base for base in (str, int, float, list, tuple, dict) if isinstance(value, base)), None)
    if base is not None:
        return f"of which a checkpoint cannot hold the class: give {base.__name__}(...) of it"
    return (
        "which a checkpoint cannot hold; give tensors, numbers, text, bytes, None, lists, tuples, sets, dicts or "
        "dataclasses of them"
    )


def _encode_items(value: list[Any] | tuple[Any, ...], path: str, name_of: Namer, depth: int) -> list[Any]:
    # Generator states are long lists of small integers, and are encoded at every snapshot.
    if value and set(map(type, value)) == {int} and min(value) >= -(2**63) and max(value) < 2**63:
        return list(value)
    return [encode(v, _child(path, i), name_of, depth + 1) for i, v in enumerate(value)]


def _encode_dict(value: dict[Any, Any], path: str, name_of: Namer, depth: int) -> Any:
    # In line: an optimizer's groups and a config have many values, and are encoded at every snapshot.
    if set(map(type, value)) <= {str} and "$" not in [key[:1] for key in value]:
        return {
            key: v
            if (kind := type(v)) in _AS_IT_IS or (kind in _NUMBERS and -_FAR < v < _FAR)
            else encode(v, _child(path, key), name_of, depth + 1)
            for key, v in value.items()
        }
    return {
        "$dict": [
            [encode(key, f"key of {path}", depth=depth + 1), encode(v, _child(path, key), name_of, depth + 1)]
            for key, v in value.items()
        ]
    }


def _no_tensor(name: str) -> Any:
    raise ValueError(f"a tensor {name!r} in a place where tensors are not allowed")


def decode(value: Any, tensor: Callable[[str], Any] = _no_tensor) -> Any:
    """The value that encode() was given. `tensor` returns the tensor of a name. ValueError or KeyError if encode() did
    not make `value`."""
    match value:
        case list():
            return [decode(v, tensor) for v in value]
        case {"$tuple": list(items)}:
            return tuple(decode(v, tensor) for v in items)
        case {"$dict": list(items)}:
            return {decode(k): decode(v, tensor) for k, v in items}
        case {"$float": str(text)}:
            return float(text)
        case {"$int": str(text)}:
            return int(text, 16)
        case {"$tensor": str(name)}:
            return tensor(name)
        case {"$parameter": [str(name), bool(requires_grad)]}:
            return rare.module("torch").nn.Parameter(tensor(name), requires_grad)
        case {"$record": [str(name), dict(fields)]}:
            return records.made(name, {key: decode(v, tensor) for key, v in fields.items()})
        case {"$per_rank": str(path)}:
            return Reference(path)
        case dict() if len(value) == 1 and (tag := next(iter(value))) in rare.TAGS:
            return rare.decode(tag, value[tag], lambda inner: decode(inner, tensor))
        case dict():
            return {k: decode(v, tensor) for k, v in value.items()}
    return value


def plain(value: Any, path: str = "") -> Any:
    """`value` with dataclasses as dicts and tensors unchanged. StateError for a value that a checkpoint cannot hold."""
    found: list[Any] = []

    def name_of(leaf: Any, at: str) -> str | None:
        if not hasattr(leaf, "data_ptr"):
            if type(leaf) is not OrderedDict and rare.encode(leaf, lambda inner, key: inner) is not None:
                # In such a file torch.load(weights_only=True) would refuse it.
                raise StateError(f"{at} is a {type(leaf).__name__}: give lists, dicts, numbers, text or tensors")
            return None
        if hasattr(leaf, "full_tensor"):
            raise StateError(
                f"{at} is sharded over ranks (a DTensor), and one file has one rank's part: use Checkpointer"
            )
        found.append(leaf)
        return str(len(found) - 1)  # two may have one path: that of the key "a/b", and of "b" in "a"

    # torch.load(weights_only=True) would refuse a dataclass or a Parameter in such a file.
    encoded = encode(records.as_dicts(value), path, name_of)
    return decode(encoded, lambda name: found[int(name)])
