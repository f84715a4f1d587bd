"""Methods of one instance, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace(thing: Any, name: str, value: Any) -> Callable[[], None]:
    """Sets the attribute of this instance alone. Returns a function that undoes it."""
    before = vars(thing).get(name)
    setattr(thing, name, value)

    def undo() -> None:
        if before is None:
            vars(thing).pop(name, None)
        else:
            setattr(thing, name, before)

    return undo
