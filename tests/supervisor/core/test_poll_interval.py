"""How long the loop sleeps: not a moment too long for a recovery, and long where there is nothing to be quick about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.machine import Mode, State
from supervisor.core.model import Cause, Verdict
from supervisor.core.poll_interval import CALM, END, START, URGENT, poll_interval

NOW = 1000.0
STOPPED = Verdict(Cause.STOPPED_BY_USER, "stopped", NOW - 60)


@pytest.mark.parametrize(
    ("state", "urgent"),
    [
        (State(Mode.RUNNING, launched_at=NOW - 0.1), True),
        (State(Mode.RUNNING, launched_at=NOW - START), False),
        (State(Mode.RUNNING, launched_at=NOW - 0.1, stepped=True), False),
        (State(Mode.RUNNING, launched_at=NOW - 600, stepped=True, suspects=True), True),
        (State(Mode.STOPPING, verdict=Verdict(Cause.KILLED, "", NOW - 0.1), killed_at=NOW - 0.1), True),
        # Asked to save and go, and still at it.
        (State(Mode.STOPPING, verdict=STOPPED, kill_at=NOW + 10), False),
        (State(Mode.STOPPING, verdict=STOPPED, killed_at=NOW - 0.1), True),
        # It does not go.
        (State(Mode.STOPPING, verdict=STOPPED, killed_at=NOW - END), False),
    ],
)
def test_urgent_while_it_matters(state: State, urgent: bool) -> None:
    """Coming up and going down are urgent at first; a long start and a long grace are not."""
    assert poll_interval(state, NOW) == (URGENT if urgent else CALM)


@given(st.floats(0.0, 2 * NOW))
def test_a_backoff_is_never_overslept(next_at: float) -> None:
    """The next attempt begins when it is due; a stop meanwhile is seen in time."""
    slept = poll_interval(State(Mode.BACKOFF, next_at=next_at), NOW)
    assert 0.0 <= slept <= CALM
    assert slept == 0.0 or NOW + slept <= next_at + 1e-9
