"""The time that the loop may sleep between two looks. The end of a process, or a signal, always wakes it at once."""

from __future__ import annotations

from supervisor.core.machine import Mode, State

CALM = 0.2
"""Seconds, while a run trains."""
URGENT = 0.01
"""Seconds, while an attempt starts or ends. Every millisecond of it adds to the recovery."""
AT_ONCE = 0.001
"""Seconds, when an attempt was just killed. Its processes do not tell when they run no more code."""
KILLED = 0.1
START = 30.0
END = 1.0
"""Seconds after which a start or an end is no longer urgent. During a compilation of half an hour, or the grace of a
stop, a hundred looks per second would only take CPU from the ranks."""


def poll_interval(state: State, now: float) -> float:
    """The most seconds until the next look."""
    match state.mode:
        case Mode.BACKOFF:
            waits = (state.gpus_until is not None and now < state.gpus_until) or state.due_since is not None
            return min(CALM, max(CALM if waits else 0.0, state.next_at - now))
        case Mode.RUNNING:
            urgent = state.suspects or (not state.stepped and now < state.launched_at + START)
        case Mode.STOPPING:
            if state.killed_at is not None and now < state.killed_at + KILLED:
                return AT_ONCE
            verdict_at = state.verdict.at if state.verdict is not None else 0.0
            urgent = now < max(verdict_at, state.killed_at or 0.0) + END
        case _:
            urgent = True
    return URGENT if urgent else CALM
