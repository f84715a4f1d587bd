"""The place where a standby waits for its release, and the reason if it could wait further on."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from supervisor.core.size import human_bytes

TRIES = 2
"""A program whose standby has failed to get to restore() this often is not tried again."""


class Place(enum.Enum):
    START = "start"
    """The script's first line."""
    RESTORE = "restore"
    """Checkpointer.restore(): everything before it is done."""


_RESERVE = 1.1
"""What a standby needs is taken to be this much more than a rank of the attempt uses."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a rank of the attempt tells of its GPU, in bytes."""

    device: str
    reserved: int
    """The most that the rank has reserved."""
    free: int
    exclusive: bool = False
    """Whether it takes one process only."""


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
    gpus: tuple[Gpu, ...] = ()
    crowded: str = ""
    """The kind of memory of which an attempt had too little while a standby held some: `GPU memory`, `memory`."""
    used: int = 0
    """Bytes of memory of all ranks of the attempt."""
    available: int | None = None
    """Bytes of memory that are left; None if that is not known."""


def where(asked: str, facts: Facts) -> tuple[Place, str]:
    """The place, and why it is not restore(); the reason is empty if nobody asks for that."""
    if asked == "start" or (asked == "auto" and facts.reached and not facts.asks):
        return Place.START, ""
    # Who asks for it by an option has counted the memory.
    if why := _against(facts) or (_memory(facts) if asked == "auto" else ""):
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
    if any(gpu.exclusive for gpu in facts.gpus):
        return "the GPU takes one process at a time (compute mode)"
    if facts.crowded:
        return f"an attempt ran out of {facts.crowded} while a standby held some"
    return ""


def _memory(facts: Facts) -> str:
    for device in {gpu.device for gpu in facts.gpus}:
        here = [gpu for gpu in facts.gpus if gpu.device == device]
        needed, free = round(_RESERVE * sum(gpu.reserved for gpu in here)), min(gpu.free for gpu in here)
        if needed > free:
            return f"it would need {human_bytes(needed)} of GPU memory, and {human_bytes(free)} are free"
    needed = round(_RESERVE * facts.used)
    if facts.available is not None and needed > facts.available:
        return f"it would need {human_bytes(needed)} of memory, and {human_bytes(facts.available)} are available"
    return ""
