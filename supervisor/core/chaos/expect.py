"""What each fault must lead to, as data: when a cause is named otherwise, or a limit changes, this table changes."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Moment(enum.Enum):
    """When in a run a fault strikes."""

    STARTUP = "startup"
    """A rank has just begun."""
    EARLY = "early"
    """It trains, and there is no checkpoint yet."""
    STEP = "step"
    SAVE = "save"
    RESTORE = "restore"
    STANDBY = "standby"
    """While the next worker group is in the making."""


class Tier(enum.Enum):
    """Where a run resumes from."""

    MEMORY = "memory"
    DISK = "disk"
    """Snapshots are off, so that checkpoints are written by the ranks and read after every failure."""


ALL = tuple(Moment)
_TRAINING = (Moment.EARLY, Moment.STEP, Moment.STANDBY)
_SOME_CHECKPOINT = (Moment.STARTUP, Moment.STEP, Moment.SAVE, Moment.RESTORE, Moment.STANDBY)


@dataclass(frozen=True, slots=True)
class Expectation:
    """How a fault may be seen. `causes`: the verdict on its attempt is one of these. `event`: or it is told by this event
    while the attempt goes on. Neither: nobody may notice anything."""

    causes: frozenset[str] = frozenset()
    event: str = ""
    before: str = ""
    """The event that would mean that it went by unnoticed, if it came first."""
    moments: tuple[Moment, ...] = ALL
    tiers: tuple[Tier, ...] = tuple(Tier)
    ranked: bool = True
    """Whether it strikes a rank of choice."""
    same_bits: bool = True
    """Whether the end is that of an undisturbed run."""
    recurs: bool = False
    """Whether it may lie in what was saved, so that the next attempts fail of it, too."""
    parameters: str = ""
    carries: bool = True
    """Whether it ends its attempt for certain, so that what is to strike the next one can wait for it."""

    @property
    def ends(self) -> bool:
        """Whether its attempt is over after it."""
        return bool(self.causes) and not self.event


def _ends(*causes: str, **more: object) -> Expectation:
    return Expectation(frozenset(causes), **more)  # type: ignore[arg-type]


_DAMAGED = Expectation(
    event="checkpoint_quarantined",
    before="resumed",
    moments=_SOME_CHECKPOINT,
    tiers=(Tier.DISK,),
    ranked=False,
    carries=False,
)

EXPECTED: dict[str, Expectation] = {
    "kill": _ends("killed"),
    # A script with a Checkpointer saves and asks to be started again.
    "term": _ends("killed", "preempted"),
    "stop": _ends("stopped"),
    "exc": _ends("exception", "startup_error"),
    "exit": _ends("exception", "startup_error", parameters="code=3"),
    "segv": _ends("segfault"),
    "abort": _ends("abort"),
    "oom": _ends("host_oom", "killed"),
    # A save may take half an hour before it is called a hang, so nobody waits for that here.
    "gil": _ends("hang", moments=tuple(m for m in ALL if m is not Moment.SAVE)),
    "hang": _ends("hang", moments=tuple(m for m in ALL if m is not Moment.SAVE)),
    "slow": Expectation(parameters="seconds=2s", carries=False),
    # The run goes back, past some data: its end is not the undisturbed run's.
    "nan": Expectation(frozenset({"nan"}), moments=_TRAINING, recurs=True, same_bits=False, carries=False),
    "enospc": Expectation(
        frozenset({"exception", "no_space"}),
        event="checkpoint_failed",
        before="checkpoint_committed",
        tiers=(Tier.DISK,),
        carries=False,
    ),
    "torn": _DAMAGED,
    "corrupt": _DAMAGED,
    "kill-launcher": _ends("launcher_died", ranked=False),
    # Its successor may end the attempt ("lost") or adopt it.
    "kill-supervisor": _ends("lost", ranked=False, carries=False),
    "kill-flush": Expectation(
        event="checkpoint_failed",
        before="checkpoint_committed",
        moments=(Moment.SAVE,),
        tiers=(Tier.MEMORY,),
        ranked=False,
        carries=False,
    ),
}
WAITED_FOR = ("hang", "lost")
"""Causes whose times are not those of a recovery: a limit set by the user has to pass, or a person has to come."""
SUPERVISOR = "kill-supervisor"
POISON = "nan"
DAMAGE = ("torn", "corrupt")
"""Seen only when the damaged checkpoint is read."""
