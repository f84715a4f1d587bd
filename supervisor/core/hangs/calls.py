"""The calls of libraries that were seen to end: one that takes far longer than it ever did has a shorter limit."""

from __future__ import annotations

from supervisor.core.hangs.motion import Kind, Motion
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import RankView

CALLS = (Kind.NATIVE, Kind.BETWEEN)
"""The kinds of standstill that are one call."""
TIMES, LEAST = 10.0, 60.0
"""A call may take so many times its longest time, and at least so many seconds: its data may have grown."""
_NEAR = 4
"""The frames that tell a call, from the innermost out: a library's own lines are the same for all of its callers."""


def call_of(motion: Motion) -> str:
    """The place of the call. The same line of the same function, called from the same place, is the same call."""
    return " < ".join(f"{frame.file}:{frame.line}" for frame in motion.last.main.frames[:_NEAR])


def learned(pace: Pace, motion: Motion | None, lives: bool, view: RankView, seconds: float) -> Pace:
    """The pace, with the call of `motion` if that has ended: the rank `lives`, or is seen elsewhere. The call took less
    than `seconds`, the silence so far."""
    if motion is None or motion.kind not in CALLS:
        return pace
    sample = view.sample
    left = sample is not None and sample.at > motion.last.at and sample.place != motion.last.place
    return pace.called(call_of(motion), seconds) if lives or left else pace


def call_limit(pace: Pace, motion: Motion, limit: float) -> float:
    """`limit`, or less if this very call was seen to end sooner."""
    seen = pace.calls.get(call_of(motion)) if motion.kind in CALLS else None
    return limit if seen is None else min(limit, max(LEAST, TIMES * seen))
