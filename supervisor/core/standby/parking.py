"""The place where a standby waits for its release, and the reason if it could wait further on."""

from __future__ import annotations

import enum
from dataclasses import dataclass

TRIES = 2
"""A program whose standby has failed to get to restore() this often is not tried again."""


class Place(enum.Enum):
    START = "start"
    """The script's first line."""
    RESTORE = "restore"
    """Checkpointer.restore(): everything before it is done."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the program while an attempt runs."""

    spawns: bool = False
    """The script starts its ranks itself."""
    reached: bool = False
    """Every rank of the attempt has called restore()."""
    asks: bool = False
    """The program asks that a standby waits there."""
    steps: int = 0
    """Optimizer steps before it."""
    failures: tuple[str, ...] = ()
    """Why standbys of this run could not wait there."""


def where(asked: str, facts: Facts) -> tuple[Place, str]:
    """The place, and why it is not restore(); the reason is empty if nobody asks for that."""
    if asked == "start" or (asked == "auto" and facts.reached and not facts.asks):
        return Place.START, ""
    if why := _against(facts):
        return Place.START, why if asked == "restore" or facts.asks else ""
    return Place.RESTORE, ""


def _against(facts: Facts) -> str:
    if facts.spawns:
        return "the script starts its ranks itself"
    if not facts.reached:
        return "the program has not called Checkpointer.restore()"
    if facts.steps:
        return f"the program makes {facts.steps} optimizer steps before Checkpointer.restore()"
    if len(facts.failures) >= TRIES:
        return f"a standby could not get to restore() {len(facts.failures)} times: {facts.failures[-1]}"
    return ""
