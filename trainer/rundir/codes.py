"""Numbers that ranks, supervisor and users agree on: exit codes, and the phases of a rank."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """With which a command, a run or a rank ends. What a rank's other numbers mean, its script knows."""

    FINISHED = 0
    FAILED = 1
    """An exception of a rank; of a command, a mistake of ours."""
    USAGE = 2
    """A bad request: nothing was started."""
    DAMAGED = 3
    """`ckpt verify`: a checkpoint is bad."""
    PREEMPTED = 75
    """EX_TEMPFAIL: asked to stop, after a checkpoint; safe to launch again. Of a rank, too."""
    NEVER_RESTART = 78
    """EX_CONFIG, of a rank: no restart can help."""
    BUDGET = 100
    """The restarts are used up."""
    RUNNING = 101
    """`status --exit-code` of a run that is not over."""
    NO_SUCH_RUN = 102
    STOPPED = 103
    """By a person."""
    POINTLESS = 104
    """A restart is not worth it."""
    NO_PROGRESS = 105
    """Attempts in a row left no new checkpoint."""
    STUCK = 106
    """Something outlived its SIGKILL."""
    CHAOS = 107
    """`chaos`: a verdict is not as it must be."""
    HELD = 108
    """Another supervisor has this run."""
    INTERRUPTED = 130
    """Ctrl-C at a command that waits for nothing of a run's."""

    __str__ = int.__repr__


class Phase(enum.IntEnum):
    """What a rank is doing. Each phase has its own limit for being silent."""

    NONE = 0
    STARTUP = 1
    RESTORE = 2
    FIRST_STEP = 3
    TRAIN = 4
    SAVE = 5
    EVAL = 6
    TEARDOWN = 7

    @property
    def word(self) -> str:
        """As files and people have it."""
        return self.name.lower()
