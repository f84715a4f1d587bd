"""The options of a Checkpointer, checked: a ValueError says what is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

from .disk.restore import MODES
from .state.per_rank import OnResize

_Part = TypeVar("_Part")

Every = int | Literal["auto"] | None
Compared = Literal["check", "trust"]
One: TypeAlias = _Part | Mapping[str, _Part] | None
"""One, or several by a name each, or none."""


def checked_every(every: Every, name: str) -> Every:
    if every is None or every == "auto" or (isinstance(every, int) and every >= 1):
        return every
    raise ValueError(f"{name}={every!r}: give a number of steps, 'auto' or None")


def checked_keep(keep: int) -> int:
    if keep >= 2:
        return keep
    raise ValueError(f"keep={keep}: at least two, so that one damaged checkpoint costs no more than a few steps")


def checked_on_resize(on_resize: OnResize) -> OnResize:
    if on_resize in ("refuse", "reset"):
        return on_resize
    raise ValueError(f"on_resize={on_resize!r}: give 'refuse' or 'reset'")


def checked_resume(resume: str) -> str:
    if resume in MODES:
        return resume
    raise ValueError(f"resume={resume!r}: give one of {', '.join(MODES)}")


def checked_replicas(replicas: Compared) -> Compared:
    if replicas in ("check", "trust"):
        return replicas
    raise ValueError(f"replicas={replicas!r}: give 'check' or 'trust'")
