"""Dataclasses in a state: each comes back as an instance of its class, with the fields that it had. Nothing is imported
and no method of the class is called: a class that is not loaded, or cannot be made here, is left as Lost. Needs no
torch."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import StateError


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """Replaces a dataclass that cannot be made here."""

    name: str
    fields: Mapping[str, Any]
    why: str


def is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def name_of(value: Any, path: str) -> str:
    """The name by which the class of `value` is found again. StateError if it would not come back as it is."""
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    how = "give dataclasses.asdict(...) of it"
    if _loaded(name) is not kind:
        raise StateError(
            f"{path} is a {name}, a class that cannot be found by its name (it is local to a function): {how}"
        )
    # With slots there is no __dict__, and nothing but fields.
    more = set(getattr(value, "__dict__", {})) - {field.name for field in dataclasses.fields(value)}
    if unset := [field.name for field in dataclasses.fields(value) if not hasattr(value, field.name)]:
        raise StateError(f"{path} is a {name} whose field {unset[0]} has no value: {how}")
    if more or isinstance(value, dict | list | tuple | str | int | float | set | frozenset | BaseException):
        has = f"has {', '.join(sorted(more))}" if more else "has more in it"
        raise StateError(f"{path} is a {name} that {has} besides its fields: {how}")
    return name


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def made(name: str, given: Mapping[str, Any]) -> Any:
    """The dataclass of that name with the fields `given`. A field that its class has got since has its default. Lost,
    whatever the class does: the state is whole."""
    kind = _loaded(name)
    if kind is None:
        return Lost(name, given, "it is not loaded here: import it before")
    try:
        return _filled(kind, name, given)
    except Exception as error:
        # A default_factory is anybody's code, and a class may have become abstract, or a field of it a property.
        return Lost(name, given, f"it cannot be made here: {error!r}")


def _filled(kind: Any, name: str, given: Mapping[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if more := [key for key in given if key not in fields]:
        return Lost(name, given, f"it has no {', '.join(more)} any more")
    value = object.__new__(kind)
    for key, field in fields.items():
        if key in given:
            one = given[key]
        elif field.default is not dataclasses.MISSING:
            one = field.default
        elif field.default_factory is not dataclasses.MISSING:
            one = field.default_factory()
        else:
            return Lost(name, given, f"it has {key} now, which has no default")
        object.__setattr__(value, key, one)
    return value


def _loaded(name: str) -> Any:
    """The dataclass of that name, if its module is loaded."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    same = isinstance(found, type) and f"{found.__module__}:{found.__qualname__}" == name
    return found if same and dataclasses.is_dataclass(found) else None


def inside(value: Any) -> list[tuple[Any, Any]]:
    """What a value of a state holds, each with its key."""
    if is_record(value):
        return list(fields_of(value).items())
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple | set | frozenset | deque) else []


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with change(item) for each item in it. A dict, list or dataclass is the same object."""
    if is_record(value):
        for key, inner in inside(value):
            object.__setattr__(value, key, change(inner))
    elif isinstance(value, dict | list | deque):
        for key, inner in inside(value):
            value[key] = change(inner)
    elif type(value) in (tuple, set, frozenset):
        return type(value)(change(inner) for inner in value)
    return value


def lost(value: Any, path: str = "") -> Iterator[tuple[str, Lost]]:
    """What could not be made in `value`, with its path."""
    if isinstance(value, Lost):
        yield path, value
        return
    for key, inner in inside(value):
        yield from lost(inner, f"{path}/{key}" if path else str(key))


def as_dicts(value: Any, depth: int = 0) -> Any:
    """`value` with dataclasses as dicts of their fields. What is nested deeper than a state may be is left."""
    if depth > 200:
        return value
    if is_record(value):
        value = fields_of(value)
    if type(value) is OrderedDict:
        found = OrderedDict((key, as_dicts(inner, depth + 1)) for key, inner in value.items())
        vars(found).update(vars(value))  # the versions of layers, in a module's state_dict()
        return found
    if type(value) is dict:
        return {key: as_dicts(inner, depth + 1) for key, inner in value.items()}
    return type(value)(as_dicts(inner, depth + 1) for inner in value) if type(value) in (list, tuple) else value
