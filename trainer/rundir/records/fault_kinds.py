"""The table of faults: their names, their targets, their executors, and the signs by which they must be seen.

Specs (`faults.py`), ranks, the supervisor, `supervise chaos` and the pages read it. There is no other list of faults.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Moment(enum.Enum):
    """The moment in a run at which a fault strikes."""

    STARTUP = "startup"
    """A rank has just begun."""
    EARLY = "early"
    """The rank trains, and there is no checkpoint yet."""
    STEP = "step"
    SAVE = "save"
    RESTORE = "restore"
    STANDBY = "standby"
    """The next worker group is being started."""


class Tier(enum.Enum):
    """The storage from which a run resumes."""

    MEMORY = "memory"
    DISK = "disk"
    """Snapshots are off: the ranks write checkpoints, and read them after every failure."""


class By(enum.Enum):
    """The process that carries a fault out."""

    RANK = "the rank"
    SIGNAL = "the rank; the supervisor if it is `@after`"
    """A signal to a rank. The supervisor can send it at any time, the rank at a step."""
    FILE = "the rank; the supervisor if it waits for no rank"
    SUPERVISOR = "the supervisor"


_ALL = tuple(Moment)
_TRAINING = (Moment.EARLY, Moment.STEP, Moment.STANDBY)
_SOME_CHECKPOINT = (Moment.STARTUP, Moment.STEP, Moment.SAVE, Moment.RESTORE, Moment.STANDBY)
# A save may take half an hour before it counts as a hang. Chaos does not wait for that.
_NO_SAVE = tuple(moment for moment in Moment if moment is not Moment.SAVE)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `causes`: the verdict on its attempt is one of these. `event`: this event reports it, and the
    attempt goes on. Neither: nobody may notice the fault."""

    strikes: str
    by: By
    causes: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ("rank",)
    """The keys of its spec beside the moment. With `rank` the spec chooses the rank to strike."""
    signal: int = 0
    event: str = ""
    before: str = ""
    """If this event comes first, the fault went by unnoticed."""
    moments: tuple[Moment, ...] = _ALL
    """The moments at which it can strike and `chaos` lets it strike."""
    tiers: tuple[Tier, ...] = tuple(Tier)
    same_bits: bool = True
    """Whether the run ends with the bits of an undisturbed run."""
    recurs: bool = False
    """Whether saved states may contain it, so that the next attempts fail of it, too."""
    parameters: str = ""
    """The parameters that `chaos` gives to it."""
    carries: bool = True
    """Whether it surely ends its attempt. Then a fault for the next attempt can wait for it."""

    @property
    def ends(self) -> bool:
        """Whether it ends its attempt."""
        return bool(self.causes) and not self.event

    @property
    def ranked(self) -> bool:
        return "rank" in self.keys


def _signal(number: int, *causes: str) -> Kind:
    return Kind("a rank", By.SIGNAL, frozenset(causes), signal=number)


def _rank(*causes: str, moments: tuple[Moment, ...] = _ALL) -> Kind:
    return Kind("a rank", By.RANK, frozenset(causes), moments=moments)


_RAISED = frozenset({"exception", "startup_error"})
_DAMAGED = Kind(
    "a checkpoint",
    By.FILE,
    keys=("checkpoint",),
    event="checkpoint_quarantined",
    before="resumed",
    moments=_SOME_CHECKPOINT,
    tiers=(Tier.DISK,),
    carries=False,
)
FAULTS: dict[str, Kind] = {
    "kill": _signal(9, "killed"),
    # A script with a Checkpointer saves and asks for a restart.
    "term": _signal(15, "killed", "preempted"),
    "stop": _signal(19, "stopped"),
    "exc": _rank(*_RAISED),
    "exit": Kind("a rank", By.RANK, _RAISED, keys=("rank", "code"), parameters="code=3"),
    "segv": _signal(11, "segfault"),
    "abort": _signal(6, "abort"),
    "oom": _rank("host_oom", "killed"),
    "gil": _rank("hang", moments=_NO_SAVE),
    "hang": _rank("hang", moments=_NO_SAVE),
    "slow": Kind("a rank", By.RANK, keys=("rank", "seconds"), parameters="seconds=2s", carries=False),
    # The run goes back and skips some data. So it does not end like an undisturbed run.
    "nan": Kind(
        "a rank's weights",
        By.RANK,
        frozenset({"nan", "replicas_differ"}),
        moments=_TRAINING,
        recurs=True,
        same_bits=False,
        carries=False,
    ),
    "enospc": Kind(
        "a rank's next file of a save",
        By.RANK,
        frozenset({"exception", "no_space"}),
        event="checkpoint_failed",
        before="checkpoint_committed",
        tiers=(Tier.DISK,),
        carries=False,
    ),
    "torn": _DAMAGED,
    "corrupt": _DAMAGED,
    "kill-launcher": Kind("the launcher", By.SUPERVISOR, frozenset({"launcher_died"}), keys=()),
    # The next supervisor may end the attempt ("lost") or adopt it.
    "kill-supervisor": Kind("the supervisor", By.SUPERVISOR, frozenset({"lost"}), keys=(), carries=False),
    "kill-flush": Kind(
        "the flush under way",
        By.SUPERVISOR,
        keys=(),
        event="checkpoint_failed",
        before="checkpoint_committed",
        moments=(Moment.SAVE,),
        tiers=(Tier.MEMORY,),
        carries=False,
    ),
}
KINDS = tuple(FAULTS)
DAMAGE = tuple(name for name, kind in FAULTS.items() if kind.by is By.FILE)
"""These are seen only when the damaged checkpoint is read."""
SUPERVISOR = "kill-supervisor"
WAITED_FOR = ("hang", "lost")
"""Causes whose times are not recovery times: a limit set by the user has to pass, or a person has to come."""
KEYS = {
    "rank": "a number or `all`; 0 if omitted",
    "checkpoint": "a step or `latest`",
    "code": "an exit code",
    "seconds": "a duration",
}
"""The keys that a spec may have beside its moment."""
