"""One attempt, told from its events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.standby.cost import Cost
from supervisor.core.telling.fields import number, whole
from trainer.rundir.records.fault_kinds import FAULTS


@dataclass(slots=True)
class AttemptStory:
    """One attempt. Times are CLOCK_MONOTONIC seconds, and None if the thing has not happened."""

    number: int
    started: float
    began: float | None = None
    """`started` by the wall clock, in seconds since the epoch."""
    offset: float = 0.0
    """Seconds to add to a CLOCK_MONOTONIC of the attempt's own files."""
    nodes: Mapping[int, str] = field(default_factory=dict)
    """The hosts of its nodes, in the order of their ranks. Empty for a run on one node."""
    anew: bool = False
    """Whether no step was done before it that counts: it is the first one, also after a launch with --resume never."""
    ready: float | None = None
    resumed: float | None = None
    first_step: float | None = None
    caught_up: float | None = None
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    """The events of the requested faults that have struck it."""
    failed: float | None = None
    """The earliest known time of its failure."""
    verdict: float | None = None
    gone: float | None = None
    last: bool = False
    """Whether the run ended after it. If there is a next attempt, somebody has taken the run up again."""
    from_step: int | None = None
    """The step that it went on from. None until that is known, and if nothing tells it."""
    over: Mapping[str, Any] | None = None
    """The event which tells that it began anew although the script had saved."""
    to_step: int = -1
    """The last step that it has finished. -1 if there is none, and if nothing tells which."""
    cause: str | None = None
    rank: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    reason: str = ""
    detect_s: float | None = None
    stall_s: float = 0.0
    """Seconds for which saves held up training."""
    standbys: list[Cost] = field(default_factory=list)
    """What the standbys that were made beside it have cost."""
    stragglers: dict[int, str] = field(default_factory=dict)
    """By rank: how the rank is slower than the others."""
    pauses: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """By rank that is silent for longer than usual: the newest event about it."""
    groups: tuple[str, ...] = ()
    """The places of the ranks when it was suspected to hang."""

    @property
    def unplaced(self) -> bool:
        """Whether it has trained but nothing tells which steps of the run."""
        return self.first_step is not None and self.from_step is None

    def struck(self, failed: float) -> float:
        """The time of the fault that it died of, if one was requested: the fault knows best when it struck. Else
        `failed`."""
        return min([failed, *(at for at in map(self._blow, self.faults) if at >= self.started)])

    def _blow(self, fault: Mapping[str, Any]) -> float:
        """The time of the fault; infinite if it died of something else: the fault has another effect, or the ranks went
        on. Those that were not struck end the step that they are in."""
        kind = FAULTS.get(str(fault.get("spec")).partition(":")[0].partition("@")[0])
        deadly = kind is not None and kind.ends and self.cause in kind.causes
        went_on = self.to_step > whole(fault, "step", self.to_step) + 1
        return number(fault, "fired_mono", math.inf) if deadly and not went_on else math.inf

    def paid(self, event: Mapping[str, Any]) -> None:
        """Takes the event that tells what a standby has cost."""
        seconds, share, made_s = (_finite(event, key) for key in ("cost_s", "share", "made_s"))
        self.standbys.append(Cost(seconds, share, made_s))


def _finite(event: Mapping[str, Any], key: str) -> float:
    value = number(event, key, 0.0)
    return value if math.isfinite(value) else 0.0
