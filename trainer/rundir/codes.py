"""The numbers that ranks, supervisor and users share: exit codes, and the phases of a rank."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit codes of commands, runs and ranks. Other codes of a rank have the meaning that its script gives them."""

    FINISHED = 0
    FAILED = 1
    """A rank: an exception. A command: an error of ours."""
    USAGE = 2
    """A bad request: nothing was started."""
    DAMAGED = 3
    """`ckpt verify`: a checkpoint is bad."""
    PREEMPTED = 75
    """EX_TEMPFAIL: stopped on request, after a checkpoint; safe to launch again. Also of a rank."""
    NEVER_RESTART = 78
    """EX_CONFIG, of a rank: no restart can help."""
    BUDGET = 100
    """The restarts are used up."""
    RUNNING = 101
    """`status --exit-code`: the run is not over."""
    NO_SUCH_RUN = 102
    STOPPED = 103
    """Stopped by a person."""
    POINTLESS = 104
    """A restart is not worth it."""
    NO_PROGRESS = 105
    """Attempts in a row left no new checkpoint."""
    STUCK = 106
    """A process outlived its SIGKILL."""
    CHAOS = 107
    """`chaos`: a verdict failed."""
    HELD = 108
    """Another supervisor has this run."""
    INTERRUPTED = 130
    """Ctrl-C at a command that does not wait for a run."""

    __str__ = int.__repr__


class Phase(enum.IntEnum):
    """The activity of a rank. Each phase has its own limit of silence."""

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
        """The phase's name in files and for people."""
        return self.name.lower()


class Doing(enum.IntEnum):
    """An activity that a rank's hooks see, within its phase. It is for people: no limit depends on it."""

    NONE = 0
    IMPORTING = 1
    """torch is being imported."""
    STEPPING = 2
    """The first backward pass of this process has begun."""
    COMPILING = 3
    EVALUATING = 4
    SAVING = 5
    """The script saves by itself."""
