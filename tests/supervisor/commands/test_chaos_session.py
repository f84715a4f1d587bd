"""How many rounds a session has, and which signals end it."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from supervisor.chaos.session import Interrupted, Session, Wanted, interruptible
from supervisor.core.chaos.plan import Job, Round
from trainer.rundir.layout import RunDir
from trainer.rundir.records.fault_kinds import Moment, Tier


class Rehearsal(Session):
    """A session whose runs are none."""

    def _reference(self) -> tuple[RunDir, float]:
        return self.folder("reference"), 120.0

    def _job(self, reference: RunDir, took: float) -> Job:
        return Job(200, 1, 20, tuple(Moment), tuple(Tier))

    def _round(self, round_: Round, reference: RunDir, took: float) -> Any:
        return round_.number


@pytest.mark.parametrize(("count", "seconds", "rounds"), [(None, 0.0, 1), (10, 0.0, 1), (10, 3600.0, 2)])
def test_a_session_has_a_round_however_little_time_is_left(count: int | None, seconds: float, rounds: int) -> None:
    """The undisturbed run may take all of it. Without a round there would be no verdict, and no reason why."""
    limits: dict[str, Any] = {
        "hang_timeout": 6.0,
        "startup_timeout": 20.0,
        "size": 5,
        "count": count,
        "seconds": seconds,
    }
    session = Rehearsal(Wanted((), (), 1, 0, ("kill",), tuple(Moment), False, globs=(), **limits), print)
    session.run()
    assert len(session.results) == rounds


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hang_up_that_is_ignored_ends_nothing(ignored: bool) -> None:
    """As nohup has it. Afterwards it is ignored as before."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    ended = False
    try:
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGHUP)
            except Interrupted:
                ended = True
        assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, ended) == (ignored, not ignored)
    finally:
        signal.signal(signal.SIGHUP, before)
