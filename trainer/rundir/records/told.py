"""The supervisor's message to the ranks of an attempt: how their program resumes. It is in their environment, as
TOLD."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from ..files.codec import decode, encode
from ..variables import TOLD


class Trackers(enum.Enum):
    """The behaviour of the program's trackers."""

    OFF = "off"
    """As without us: --adapter off."""
    FIRST = "first"
    """They begin. Their choices are kept for later attempts."""
    LATER = "later"
    """They continue the files of earlier attempts."""


class Told(msgspec.Struct, frozen=True):
    """The message to one attempt."""

    adapter: str = ""
    """The adapter that decided what the program is told. Empty: none."""
    offers: tuple[str, ...] = ()
    """Checkpoints that this adapter's hook may hand to the framework, the best first."""
    trainings: Mapping[str, int] = {}
    """By offer: the number of the program's training that has saved it, if that is known."""
    facts: Mapping[str, str] = {}
    """The facts that hooks of adapters have kept in an earlier attempt."""
    hooks: tuple[str, ...] = ()
    """Third-party adapters that have hooks for its ranks, as `module:name`."""
    record: bool = False
    """Rank 0 has to record the options of the program."""
    saved: str = ""
    """The newest state that the program saved and may resume from. Empty if there is none."""
    step: int = -1
    """The true step of `saved`, or -1."""
    others: tuple[str, ...] = ()
    """Some other states that it saved, which it may write over too."""
    guard: bool = False
    """A rank that has loaded nothing ends before its first save."""
    trackers: Trackers = Trackers.OFF
    numbers: bool = False
    """The program's trackers log the numbers of the run, too."""


def encoded(told: Told) -> str:
    return encode(told).decode()


def told(environ: Mapping[str, str]) -> Told:
    """The message to this process. Without fields if it is missing or damaged."""
    try:
        return decode(environ.get(TOLD, "{}").encode(), Told)
    except ValueError:
        return Told()
