"""Random lives of a run under a fake clock: whatever happens, the promises of the state machine hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.core import machine
from supervisor.core.actions import Action, DumpStacks, Emit, End, Launch, Reach, Send
from supervisor.core.hangs.timings import Pace
from supervisor.core.machine import Mode
from supervisor.core.members import Group, Member
from supervisor.core.model import (
    Cause,
    Exit,
    History,
    Observation,
    Policy,
    Raised,
    RankView,
    StopKind,
    Verdict,
)
from supervisor.core.stack import Stack, Stacks
from supervisor.run.previous import retold
from trainer.rundir.codes import Phase

RANKS = 2
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


class World(RuleBasedStateMachine):
    """A fake process table, clock and disk around the real state machine."""

    @initialize(
        budget=st.integers(0, 3),
        limit=st.integers(1, 4),
        grace=st.sampled_from([0.0, 5.0, 45.0]),
        last=st.integers(-1, 3),
        adopts=st.sampled_from([None, "living", *Cause]),
    )
    def begin(self, budget: int, limit: int, grace: float, last: int, adopts: str | Cause | None) -> None:
        self.policy = Policy(max_restarts=budget, no_progress_limit=limit, grace=grace, window=50.0)
        self.state = machine.begin(last, History())
        self.first = last + 1
        self.now = 1000.0
        self.ranks: dict[int, RankView] = {}
        self.launcher = self.launcher_stopped = False
        self.helpers = 0
        self.immortal = False
        self.exits: list[Exit] = []
        self.raised: list[Raised] = []
        self.steps: dict[int, int] = {}
        self.checkpoint = -1
        self.stacks: Stacks | None = None
        self.stop: StopKind | None = None
        self.stop_now = False
        self.log: list[tuple[float, Action]] = []
        self.launches: list[int] = []
        self.asked: float | None = None
        if last >= 0 and adopts is not None:
            self.adopt(last, adopts)
        self.look()

    def adopt(self, attempt: int, adopts: str | Cause) -> None:
        """The attempt of a supervisor that died, which had, or had not, told a verdict on it."""
        told = Verdict(adopts, "told", self.now - 5.0, 1, step=3) if isinstance(adopts, Cause) else None
        self.launcher = True
        self.ranks = {r: RankView(r, 3, Phase.TRAIN, self.now, True) for r in range(RANKS)}
        self.state, actions = machine.adopt(attempt, History(), Pace(), self.now - 60.0, self.now, told)
        self.log += [(self.now, action) for action in actions]
        assert not any(isinstance(action, Emit) for action in actions), "told again"
        if any(isinstance(action, Send) for action in actions):
            self.kill_everything()

    def look(self) -> None:
        seen = Observation(
            now=self.now,
            ranks=tuple(self.ranks.values()),
            steps=self.steps,
            group=Group(RANKS, Member(1, stopped=self.launcher_stopped, launcher=True) if self.launcher else None),
            exits=tuple(self.exits),
            raised=tuple(self.raised),
            alive=tuple(range(len(self.ranks) + self.launcher + self.helpers)),
            checkpoint_step=self.checkpoint,
            stacks=self.stacks,
            stop=self.stop,
            stop_now=self.stop_now,
        )
        alive, before = seen.alive, self.state
        self.state, actions = machine.step(self.policy, self.state, seen)
        for action in actions:
            self.log.append((self.now, action))
            self.check_grace(action)
            if isinstance(action, Launch):
                assert not alive, "two attempts at once"
                assert self.stop is None, "a launch after a stop"
                assert before.mode is Mode.BACKOFF
                self.launches.append(action.attempt)
                self.exits, self.raised, self.steps = [], [], {}
                self.launcher, self.launcher_stopped, self.helpers = True, False, 0
                self.ranks = {r: RankView(r, -1, Phase.STARTUP, self.now, True) for r in range(RANKS)}
            if isinstance(action, DumpStacks):
                self.stacks = Stacks(self.now, tuple(Stack(rank) for rank in self.ranks))
            if isinstance(action, Send) and action.signal == "KILL" and not self.immortal:
                self.kill_everything()

    def check_grace(self, action: Action) -> None:
        """After a polite TERM, no KILL comes before the grace is over, unless asked for or the ranks are gone."""
        if isinstance(action, Launch):
            self.asked = None
        if isinstance(action, Send) and action.reach is Reach.RANKS:
            self.asked = self.now
        if isinstance(action, Send) and action.signal == "KILL" and self.asked is not None and self.ranks:
            assert self.now >= self.asked + self.policy.grace or self.stop_now, "a KILL within the grace"

    def kill_everything(self) -> None:
        self.exits += [Exit(rank, -9, self.now) for rank in self.ranks]
        self.ranks, self.launcher, self.helpers = {}, False, 0

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 10.0, 60.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.look()

    @rule(steps=st.integers(1, 5))
    def train(self, steps: int) -> None:
        for rank, view in self.ranks.items():
            if not view.stopped:
                self.steps[rank] = max(view.step, 0) + steps
                self.ranks[rank] = replace(view, step=self.steps[rank], phase=Phase.TRAIN, beat_at=self.now)
        self.look()

    @precondition(lambda self: any(v.phase == Phase.TRAIN for v in self.ranks.values()))
    @rule()
    def save(self) -> None:
        self.checkpoint = max(self.checkpoint, max(v.step for v in self.ranks.values()))
        self.look()

    @precondition(lambda self: self.ranks)
    @rule(rank=st.integers(0, RANKS - 1), status=st.sampled_from([0, 1, 2, 75, 78, -9, -11, -15, None]))
    def rank_exits(self, rank: int, status: int | None) -> None:
        if self.ranks.pop(rank, None) is not None:
            self.exits.append(Exit(rank, status, self.now))
        self.look()

    @precondition(lambda self: self.ranks)
    @rule(rank=st.integers(0, RANKS - 1), message=st.sampled_from(["bad", "Connection closed by peer"]))
    def rank_raises(self, rank: int, message: str) -> None:
        if rank in self.ranks and all(r.rank != rank for r in self.raised):
            self.raised.append(Raised(rank, "RuntimeError", message, "t.py:1 f", self.now))
        self.look()

    @precondition(lambda self: self.ranks)
    @rule(rank=st.integers(0, RANKS - 1))
    def rank_is_stopped(self, rank: int) -> None:
        if rank in self.ranks:
            self.ranks[rank] = replace(self.ranks[rank], stopped=True)
        self.look()

    @precondition(lambda self: self.launcher)
    @rule(status=st.sampled_from([0, 1, -9]))
    def launcher_exits(self, status: int) -> None:
        if status == 0:
            self.exits += [Exit(rank, 0, self.now) for rank in self.ranks]
            self.ranks = {}
        self.launcher = False
        self.exits.append(Exit(None, status, self.now))
        self.look()

    @precondition(lambda self: self.launcher)
    @rule()
    def launcher_is_stopped(self) -> None:
        self.launcher_stopped = True
        self.look()

    @precondition(lambda self: self.launcher)
    @rule()
    def a_grandchild_appears(self) -> None:
        self.helpers += 1
        self.look()

    @rule(unkillable=st.booleans())
    def the_kernel_misbehaves(self, unkillable: bool) -> None:
        self.immortal = unkillable
        self.look()

    @rule(kind=st.sampled_from(list(StopKind)), now=st.booleans())
    def somebody_stops_it(self, kind: StopKind, now: bool) -> None:
        self.stop_now = self.stop_now or now or self.stop is not None
        self.stop = self.stop or kind
        self.look()

    @invariant()
    def attempts_count_up_by_one(self) -> None:
        if hasattr(self, "launches"):
            assert self.launches == list(range(self.first, self.first + len(self.launches)))

    @invariant()
    def the_budget_is_kept(self) -> None:
        """Between two new checkpoints, never more counted restarts in a window than allowed."""
        if hasattr(self, "state"):
            history = self.state.history
            for at in history.restarts:
                within = [t for t in history.restarts if at - self.policy.window < t <= at]
                assert len(within) <= self.policy.max_restarts

    @invariant()
    def the_end_is_the_end(self) -> None:
        if not hasattr(self, "log"):
            return
        ends = [i for i, (_, action) in enumerate(self.log) if isinstance(action, End)]
        assert len(ends) <= 1
        if ends:
            assert self.state.mode is Mode.ENDED
            assert ends[0] == len(self.log) - 1
            end = self.log[-1][1]
            assert isinstance(end, End)
            assert end.exit_code in (0, 75, 100, 103, 104, 105, 106)
            assert end.reason and end.state
            if end.exit_code != 106:
                assert not self.ranks and not self.launcher and not self.helpers, "something is left behind"

    @invariant()
    def stacks_before_the_kill(self) -> None:
        """No hung group is killed before it was asked where it stands."""
        if hasattr(self, "log"):
            asked = False
            for _, action in self.log:
                asked = (asked or isinstance(action, DumpStacks)) and not isinstance(action, Launch)
                if isinstance(action, Emit) and action.event == "verdict" and action.fields["cause"] == "hang":
                    assert asked


World.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
test_random_lives = World.TestCase


VERDICTS = st.builds(
    Verdict,
    cause=st.sampled_from(Cause),
    reason=st.text(),
    at=st.just(0.0),
    rank=st.none() | st.integers(0, 64),
    signal=st.none() | st.integers(1, 64),
    exit_code=st.none() | st.integers(0, 255),
    step=st.integers(-1, 10**9),
    frame=st.text(),
    failed_at=st.floats(0.0, 1e6),
    collateral=st.lists(st.integers(0, 64)).map(tuple),
)


@given(VERDICTS, st.floats(0.0, 1e6))
def test_a_verdict_that_was_told_is_known_again(verdict: Verdict, now: float) -> None:
    """What one supervisor tells of its verdict is all that the next one needs to stand by it."""
    told = retold({**json.loads(json.dumps(machine._verdict_event(verdict, now).fields)), "mono": now})

    assert told is not None and told == replace(verdict, at=now)
    assert told.signature == verdict.signature


KEYS = [*machine._verdict_event(Verdict(Cause.HANG, "", 0.0), 0.0).fields, "mono"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_a_garbled_verdict_is_none(garbled: dict[str, Any]) -> None:
    """Whatever stands in the file is a verdict or none; it never raises."""
    whole = {**machine._verdict_event(Verdict(Cause.HANG, "", 0.0), 0.0).fields, "mono": 0.0}
    assert retold(whole) is not None

    told = retold({**whole, **garbled})

    assert told is None or all(isinstance(n, int | None) for n in (told.rank, told.signal, told.exit_code, told.step))


def test_a_wait_that_somebody_ends() -> None:
    """The attempt that is waited for begins at once; a request for another one is out of date."""
    waiting = machine.State(Mode.BACKOFF, attempt=3, next_at=100.0)
    for asked, begins in (None, False), (3, False), (5, False), (4, True):
        state, actions = machine.step(Policy(), waiting, Observation(5.0, retry=asked))
        assert (state.mode is Mode.RUNNING) == begins and actions == ([Launch(4, None)] if begins else [])
