"""Fields of an event, whatever is in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]


def whole(event: Event, key: str, default: int = -1) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else default


def number(event: Event, key: str, default: float) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else default


def optional(event: Event, key: str) -> int | None:
    value = event.get(key)
    return value if isinstance(value, int) else None


def hosts(event: Event) -> dict[int, str]:
    """The nodes of an attempt with their hosts."""
    nodes = event.get("nodes")
    found = nodes.items() if isinstance(nodes, Mapping) else ()
    return {int(node): host for node, host in found if str(node).isdecimal() and isinstance(host, str)}


def known(step: int) -> int | None:
    return step if step >= 0 else None
