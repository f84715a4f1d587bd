"""The actions that the core asks for. The shell carries them out and tells the events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervisor.core.model import Rollback, Verdict
from supervisor.core.words import RunState, Word
from trainer.rundir.codes import ExitCode


class Reach(Word):
    """The receivers of a signal of the stop ladder."""

    RANKS = "ranks"
    """The ranks themselves, once each. Not their children. Not the launcher: it would send the signal to the ranks
    again."""
    ALL = "all"
    """Every process of the attempt, by pidfd, until none is left."""


@dataclass(frozen=True, slots=True)
class Launch:
    attempt: int
    rollback: Rollback | None = None
    lost: Verdict | None = None
    """The verdict on the GPU that the attempt and all later ones do without."""
    nodes: tuple[int, ...] = ()
    """Its nodes in the order of their ranks, the leader's own first. Empty if the run has one node."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send `signal` (TERM or KILL). Nothing is sent before a KILL. The KILL is repeated until the tree is empty."""

    signal: str
    reach: Reach


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Keep the stacks of all ranks in the attempt's folder, within a bounded time."""


@dataclass(frozen=True, slots=True)
class Emit:
    event: str
    level: str = "info"
    fields: dict[str, Any] = field(default_factory=dict)
    once: str = ""
    """If a key is given, the event is told once per attempt under that key. If empty, it is told each time."""


@dataclass(frozen=True, slots=True)
class End:
    exit_code: ExitCode
    state: RunState
    reason: str


Action = Launch | Send | DumpStacks | Emit | End
