"""The hang rule: a silent rank is found within its phase's limit, and a slow one is left alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.hang import BUSY_FLOOR, FACTOR, IDLE_FLOOR, PAUSE, STOPPED_FOR, Hang, Silence, look
from supervisor.core.model import Observation, Policy, RankView

AUTO = Policy(startup_timeout=600.0)


class Life:
    """One rank, looked at every tenth of a second."""

    def __init__(self, policy: Policy = AUTO, announces: bool = True) -> None:
        self.policy = policy
        self.hang = Hang()
        self.now = 1000.0
        self.view = RankView(0, 0, "startup", self.now, announces)

    def look(self) -> Silence | None:
        self.hang, silence = look(self.hang, self.policy, Observation(now=self.now, ranks=(self.view,)))
        return silence

    def train(self, steps: int, seconds: float) -> Silence | None:
        """`steps` steps of `seconds` each; the first verdict, if there is one."""
        for _ in range(steps):
            until = self.now + seconds
            while self.now < until:
                self.now += min(0.1, seconds)
                self.view = replace(self.view, cpu=self.view.cpu + min(0.1, seconds))
                if silence := self.look():
                    return silence
            self.view = replace(self.view, step=self.view.step + 1, phase="train", beat_at=self.now)
        return self.look()

    def wait(self, seconds: float, busy: bool = False) -> tuple[float, Silence | None]:
        """Silent for `seconds`; when the verdict came, and the verdict."""
        start = self.now
        while self.now < start + seconds:
            self.now += 0.1
            if busy:
                self.view = replace(self.view, cpu=self.view.cpu + 0.1)
            if silence := self.look():
                return self.now - start, silence
        return seconds, None


def test_idle_silence_is_found_soon() -> None:
    """A rank that neither steps nor uses the CPU has the short limit."""
    life = Life()
    assert life.train(20, 0.1) is None

    after, silence = life.wait(60.0)

    assert silence is not None and not silence.stopped
    assert after <= IDLE_FLOOR + 1.0


def test_busy_silence_of_a_script_that_says_nothing_is_patient() -> None:
    """It may be evaluating: with the CPU in use the long limit holds, and it is not for ever."""
    life = Life(announces=False)
    assert life.train(20, 0.1) is None

    after, silence = life.wait(2 * BUSY_FLOOR, busy=True)

    assert silence is not None
    assert BUSY_FLOOR - 1.0 <= after <= BUSY_FLOOR + 1.0


@settings(max_examples=30, deadline=None)
@given(st.floats(0.02, 2.0), st.lists(st.floats(1.0, 20.0), min_size=5, max_size=20))
def test_slow_steps_are_no_hang(usual: float, slow: list[float]) -> None:
    """Steps up to twenty times slower than usual never get a verdict."""
    life = Life()
    assert life.train(10, usual) is None

    for factor in slow:
        assert life.train(1, usual * factor) is None


def test_limit_grows_with_the_steps_seen() -> None:
    """The limit follows the slowest step: FACTOR times that, once it is above the floor."""
    life = Life()
    assert life.train(10, 2.0) is None

    after, silence = life.wait(500.0)

    assert silence is not None
    assert 0.9 * FACTOR * 2.0 <= after <= 1.1 * FACTOR * 2.0


def test_first_step_and_saves_have_limits_of_their_own() -> None:
    """Compiling, loading and saving may take long."""
    life = Life()
    assert life.wait(500.0)[1] is None
    after, silence = life.wait(200.0)
    assert silence is not None and after <= 110.0

    saving = Life()
    assert saving.train(10, 0.1) is None
    saving.view = replace(saving.view, phase="save")
    assert saving.wait(600.0)[1] is None


def test_stopped_rank_is_seen_at_once() -> None:
    """State T is evidence by itself."""
    life = Life()
    assert life.train(10, 0.1) is None
    life.view = replace(life.view, stopped=True)

    after, silence = life.wait(10.0)

    assert silence is not None and silence.stopped
    assert STOPPED_FOR <= after <= 2.0


def test_pause_of_the_machine_is_forgiven() -> None:
    """After a suspend every beat is old; the clock of silence starts anew."""
    life = Life()
    assert life.train(10, 0.1) is None
    life.now += 3600.0

    assert life.look() is None
    after, silence = life.wait(60.0)
    assert silence is not None and after >= IDLE_FLOOR - PAUSE


def test_off_is_off_and_a_duration_is_kept() -> None:
    """`off` never fires, in no phase; a duration holds for every rank in training."""
    off = Life(Policy(hang_timeout=float("inf")))
    assert off.train(10, 0.1) is None
    assert off.wait(2000.0)[1] is None

    fixed = Life(Policy(hang_timeout=3.0))
    assert fixed.train(10, 0.1) is None
    after, silence = fixed.wait(60.0, busy=True)
    assert silence is not None and 2.9 <= after <= 3.3
