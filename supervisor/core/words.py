"""Words that files, flags and people know: a closed set each, which fails for what it does not have."""

from __future__ import annotations

import enum


class Word(str, enum.Enum):
    """A word is its own text: it is written, compared and looked up as that."""

    __str__ = str.__str__


class RunState(Word):
    """How a run stands."""

    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    LOST = "lost"
    """It is not over, and no supervisor has it."""
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    PREEMPTED = "preempted"
    STUCK = "stuck"
