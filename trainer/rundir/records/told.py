"""What a supervisor tells the ranks of an attempt about how their program goes on: TOLD, in their environment."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..files.codec import decode, encode
from ..variables import TOLD


class Told(msgspec.Struct, frozen=True):
    """An attempt's part of it."""

    adapter: str = ""
    """Who has decided what the program is told; empty: nobody."""
    offers: tuple[str, ...] = ()
    """Checkpoints that this adapter's hook may hand to the framework, the best first."""
    hooks: tuple[str, ...] = ()
    """Adapters of others that have hooks for its ranks, as `module:name`."""
    record: bool = False
    """Rank 0 is to record which options the program has."""
    saved: str = ""
    """The newest that the program has saved before, and may go on from; empty if there is nothing."""
    step: int = -1
    """Its true step, or -1."""


def encoded(told: Told) -> str:
    return encode(told).decode()


def told(environ: Mapping[str, str]) -> Told:
    """What this process was told; nothing, where that is missing or damaged."""
    try:
        return decode(environ.get(TOLD, "{}").encode(), Told)
    except ValueError:
        return Told()
