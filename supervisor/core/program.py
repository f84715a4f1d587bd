"""Finds the files of a program that have changed between two attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.core.size import human_bytes

_MOST = 3


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a script's program."""

    bytes: int
    changed_ns: int
    """The time of its last change, by the file system. A file that was only touched has the same digest."""
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    was: Source
    now: Source | None
    """None: the file is gone."""


def changes(before: Mapping[str, Source], now: Mapping[str, Source | None]) -> tuple[Change, ...]:
    """The files of `before` whose content has changed, by name."""
    return tuple(
        Change(path, was, now.get(path))
        for path, was in sorted(before.items())
        if (found := now.get(path)) is None or found.digest != was.digest
    )


def sentence(attempt: int, before: int, found: tuple[Change, ...]) -> str:
    told = [_told(change) for change in found[:_MOST]]
    more = f", and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"attempt {attempt} runs another program than attempt {before}: {', '.join(told)}{more}"


def _told(change: Change) -> str:
    if change.now is None:
        return f"{change.path} was removed"
    return f"{change.path} was changed ({human_bytes(change.was.bytes)} before, {human_bytes(change.now.bytes)} now)"
