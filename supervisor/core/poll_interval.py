"""How long the loop may sleep between two looks. What ends a process, and every signal, wakes it at once all the same."""

from __future__ import annotations

from supervisor.core.machine import Mode, State

CALM = 0.2
"""Seconds, at a run that trains."""
URGENT = 0.01
"""While an attempt comes up or goes down, where every millisecond is one of recovery."""
START = 30.0
END = 1.0
"""Seconds after which a start, or an end, is not urgent any more: at a compilation of half an hour, or during the grace of a
stop, a hundred looks a second would only take the CPU from those who work."""


def poll_interval(state: State, now: float) -> float:
    """Seconds until the next look at the latest."""
    match state.mode:
        case Mode.BACKOFF:
            return min(CALM, max(0.0, state.next_at - now))
        case Mode.RUNNING:
            urgent = state.suspects or (not state.stepped and now < state.launched_at + START)
        case Mode.STOPPING:
            verdict_at = state.verdict.at if state.verdict is not None else 0.0
            urgent = now < max(verdict_at, state.killed_at or 0.0) + END
        case _:
            urgent = True
    return URGENT if urgent else CALM
