"""How long each phase of an attempt may take: what was given, and what earlier ones have taught."""

from __future__ import annotations

from supervisor.core.hangs.hang import Hang
from supervisor.core.hangs.limits import (
    PHASE_FLOOR,
)
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import Policy
from tests.support.silence import (
    TICK,
    Life,
    trained,
)
from trainer.rundir.codes import Phase


def test_phases_learn_their_limits() -> None:
    """A start may take what the user allows; once it was seen, 25 times that, and never less than the floor."""
    life = Life()
    assert life.pass_time(500.0)[1] is None
    after, silence = life.pass_time(200.0)
    assert silence is not None and after <= 110.0

    seen = Life(policy=Policy())
    assert seen.pass_time(2.0)[1] is None
    assert seen.train(10, 0.1) is None
    seen.hang = Hang(seen.hang.pace)
    seen.set(phase=Phase.STARTUP, beat_at=seen.now)
    after, silence = seen.pass_time(590.0)
    assert silence is not None and PHASE_FLOOR - TICK <= after <= PHASE_FLOOR + 1.0

    saving = trained()
    saving.set(phase=Phase.SAVE, beat_at=saving.now)
    assert saving.pass_time(1000.0)[1] is None
    saving.set(phase=Phase.TRAIN, step=999, beat_at=saving.now)
    assert saving.train(10, 0.1) is None
    assert saving.hang.pace.phases["save"] >= 999.0


def test_a_start_that_resumes_has_the_whole_time() -> None:
    """It skips data, restores and compiles: how fast a fresh one was tells nothing, and nothing shortens what the user
    allows."""
    for policy, learned, limit in (
        (Policy(), {"startup": 2.0}, 1800.0),
        (Policy(), {"startup": 2.0, "startup again": 8.0}, 200.0),
        (Policy(startup_timeout=400.0), {"startup": 2.0, "startup again": 2.0}, 400.0),
    ):
        life = Life(policy=policy, pace=Pace(phases=learned))
        life.hang = life.hang.new_attempt(again=True)
        after, silence = life.pass_time(2000.0)
        assert silence is not None and limit - TICK <= after <= limit + 1.0

    assert life.train(3, 0.1) is None
    assert set(life.hang.pace.phases) == {"startup", "startup again"}
    assert life.hang.pace.phases["startup"] == 2.0


def test_a_save_has_its_own_limit_whatever_was_given_for_steps() -> None:
    """Once saves were seen to be short, one that does not end is found in minutes, not in half an hour."""
    for policy, limit in (
        (Policy(), PHASE_FLOOR),
        (Policy(hang_timeout=6.0), PHASE_FLOOR),
        (Policy(hang_timeout=200.0), 200.0),
    ):
        life = trained(policy=policy)
        life.set(phase=Phase.SAVE, beat_at=life.now)
        assert life.pass_time(1.0)[1] is None
        life.set(phase=Phase.TRAIN, step=999, beat_at=life.now)
        assert life.train(3, 0.1) is None
        life.set(phase=Phase.SAVE, beat_at=life.now)
        after, silence = life.pass_time(1000.0)
        assert silence is not None and limit - TICK <= after <= limit + 1.0
