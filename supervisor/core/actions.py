"""What the core asks for: the shell does it, and tells what there is to tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervisor.core.model import Rollback
from supervisor.core.words import RunState, Word
from trainer.rundir.codes import ExitCode


class Reach(Word):
    """Whom a signal of the stop ladder goes to."""

    RANKS = "ranks"
    """The ranks themselves, once each: not their children, and not the launcher, which would repeat it to them."""
    ALL = "all"
    """Every process of the attempt, by pidfd, until none is left."""


@dataclass(frozen=True, slots=True)
class Launch:
    attempt: int
    rollback: Rollback | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send `signal` (TERM or KILL); KILL is preceded by nothing and repeated until the tree is empty."""

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
    """It is told once an attempt under this key; as often as it comes where that is empty."""


@dataclass(frozen=True, slots=True)
class End:
    exit_code: ExitCode
    state: RunState
    reason: str


Action = Launch | Send | DumpStacks | Emit | End
