"""The state machine at single moments: what is done now, what not yet, what only once. test_machine tries it at
random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core import machine
from supervisor.core import policy as core_policy
from supervisor.core.actions import Action, DumpStacks, Emit, End, Launch, Reach, Send
from supervisor.core.hangs.timings import Pace
from supervisor.core.machine import FRESH, LINGER, LINGER_TERM, STARTED_AFTER, Mode, State
from supervisor.core.model import FREEING, Cause, Exit, History, Observation, Policy, RankView, StopKind, Verdict
from supervisor.core.rules import LEAST_WAIT, table
from supervisor.core.stack import Stack, Stacks
from trainer.rundir.codes import Phase

POLICY = Policy(grace=45.0, stuck_after=20.0, hang_timeout=5.0)
KILL, TERM = Send("KILL", Reach.ALL), Send("TERM", Reach.ALL)
TRAINS = State(Mode.RUNNING, 0, launched_at=100.0, stepped=True, step=5)


def life(
    state: State, *moments: tuple[float, dict[str, Any]], policy: Policy = POLICY
) -> tuple[State, list[list[Action]]]:
    """The state after those looks, and what was done at each."""
    done = []
    for now, seen in moments:
        state, actions = machine.step(policy, state, Observation(now, **seen))
        done.append(actions)
    return state, done


def stopping(cause: Cause, **more: Any) -> State:
    verdict = Verdict(cause, "because", 100.0, rank=0, step=5, failed_at=100.0)
    return replace(TRAINS, mode=Mode.STOPPING, verdict=verdict, **more)


def test_a_kill_is_repeated_until_it_cannot_be() -> None:
    """At every look; from the first one on there are `stuck_after` seconds, and then the run ends with the pids."""
    alive = {"alive": (7, 8)}
    state, done = life(stopping(Cause.KILLED, killed_at=100.0), (101.0, alive), (119.9, alive), (120.0, alive))
    assert done[:2] == [[KILL], [KILL]]
    (end,) = done[2]
    assert isinstance(end, End) and end.exit_code == 106 and "7, 8" in end.reason and state.mode is Mode.ENDED


def test_what_frees_its_memory_is_not_stuck() -> None:
    """A rank with hundreds of gigabytes takes longer for that than `stuck_after`. One that never ends is told later."""
    frees = {"alive": (7,), "frees": True}
    looks = ((119.9, frees), (120.0, frees), (100.0 + FREEING * 20.0 - 0.1, frees), (100.0 + FREEING * 20.0, frees))
    _, done = life(stopping(Cause.KILLED, killed_at=100.0), *looks)
    assert done[:3] == [[KILL]] * 3
    assert isinstance(done[3][0], End) and done[3][0].exit_code == 106


def test_a_busy_gpu_is_waited_for() -> None:
    """Until it is free, if anybody can tell, for a minute at most; else for the time of the backoff."""
    waiting, _ = life(stopping(Cause.GPU_BUSY), (101.0, {"gpus_free": False}))
    assert waiting.mode is Mode.BACKOFF and 101.0 < waiting.next_at < 101.0 + 1.25 * LEAST_WAIT
    busy, free = {"gpus_free": False}, {"gpus_free": True}

    assert life(waiting, (101.1, busy), (130.0, busy), (130.1, free))[1] == [[], [], [Launch(1)]]
    assert life(waiting, (160.0, busy), (162.0, busy))[1] == [[], [Launch(1)]]
    assert life(waiting, (101.1, {}), (waiting.next_at, {}))[1] == [[], [Launch(1)]]


def test_a_run_that_finished_has_finished() -> None:
    """Also when a stop was asked for meanwhile; what it left has its time, one TERM, and then a KILL."""
    left = {"alive": (7,), "stop": StopKind.USER}
    begun = stopping(Cause.FINISHED, term_at=100.0 + LINGER, kill_at=100.0 + LINGER + LINGER_TERM)
    at = 100.0 + LINGER
    _, done = life(
        begun,
        (at - 0.1, left),
        (at, left),
        (at + 0.1, left),
        (at + LINGER_TERM, left),
        (at + 6, {"stop": StopKind.USER}),
    )
    assert done[:4] == [[], [TERM], [], [KILL]]
    assert [action.exit_code for action in done[4] if isinstance(action, End)] == [0]


def test_what_is_left_of_a_polite_stop() -> None:
    """Once the ranks are gone the rest has two seconds from then, not from each look, and never more than the grace."""
    gone = {"alive": (7,), "exits": (Exit(0, 75, 101.0), Exit(1, 75, 101.0)), "stop": StopKind.PREEMPTION}
    moments = [(101.0 + 0.5 * n, gone) for n in range(5)]
    _, done = life(stopping(Cause.PREEMPTED, kill_at=145.0), *moments)
    assert done == [[], [], [], [], [KILL]]
    _, done = life(stopping(Cause.PREEMPTED, kill_at=101.5), (101.0, gone), (101.5, gone))
    assert done == [[], [KILL]]
    _, done = life(stopping(Cause.PREEMPTED, kill_at=145.0), (101.0, {**gone, "exits": (), "ranks": (_rank(0),)}))
    assert done == [[]]


@pytest.mark.parametrize(("stop", "row"), [(StopKind.USER, "stopped_by_user"), (StopKind.PREEMPTION, "preempted")])
@pytest.mark.parametrize(
    "state",
    [
        stopping(Cause.KILLED, killed_at=100.0),
        stopping(Cause.PREEMPTED, kill_at=145.0),
        State(Mode.BACKOFF, 2, next_at=110.0),
    ],
    ids=["after a failure", "as asked", "in a wait"],
)
def test_a_stop_is_decided_by_its_row(state: State, stop: StopKind, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `supervise policy` prints about it is what ends the run, whenever it was asked for."""
    says = "its row has decided"
    rows = [replace(r, say=lambda case: says) if r.when.startswith(f"{row}:") else r for r in table(POLICY)]
    monkeypatch.setattr(core_policy, "table", lambda policy: rows)
    _, (actions,) = life(state, (101.0, {"stop": stop}))
    (ruling,) = [rule for rule in rows if rule.when.startswith(f"{row}:")]
    (end,) = [action for action in actions if isinstance(action, End)]
    assert end.reason.startswith(says) and (end.exit_code, end.state) == (ruling.exit_code, ruling.state)


def _rank(rank: int, beat_at: float = 100.0) -> RankView:
    return RankView(rank, 5, Phase.TRAIN, beat_at, announces=True)


def test_old_stacks_name_nobody() -> None:
    """Those of an earlier silence are not this one's: the ranks are asked anew, and judged by what they say then."""
    silent = {"ranks": (_rank(0), _rank(1)), "steps": {0: 5, 1: 5}}
    stacks = Stacks(107.0 - FRESH, (Stack(0), Stack(1)))
    _, done = life(TRAINS, (100.0, silent), (101.0, silent))
    assert done == [[], []]
    looks = [(100.0 + 0.4 * n, silent) for n in range(20)]
    state, done = life(TRAINS, *looks)
    asked = next(now for (now, _), actions in zip(looks, done, strict=True) if DumpStacks() in actions)
    for age, cause in ((FRESH + 0.1, None), (0.1, "hang")):
        told = {**silent, "stacks": replace(stacks, at=asked + 1.0 - age)}
        _, (actions,) = life(state, (asked + 1.0, told))
        causes = [
            action.fields["cause"] for action in actions if isinstance(action, Emit) and action.event == "verdict"
        ]
        assert causes == ([cause] if cause else [])
        assert (DumpStacks() in actions) == (cause is None)


def test_a_verdict_of_a_clock_that_is_ahead() -> None:
    """After a reboot the dead supervisor's clock is: nothing then lies in the future, and no stop took less than no
    time."""
    told = Verdict(Cause.KILLED, "because", 9000.0, rank=0, step=5, failed_at=8999.0)
    state, actions = machine.adopt(3, History(), Pace(), 50.0, 100.0, told)
    assert actions == [KILL]
    assert state.verdict is not None and (state.verdict.at, state.verdict.failed_at) == (100.0, 100.0)
    _, ((gone, *_),) = life(state, (101.0, {}))
    assert isinstance(gone, Emit) and gone.fields["stop_s"] == 1.0


def test_a_wait_is_waited_out() -> None:
    """No launch before its time; a stop does not wait for it."""
    waits = State(Mode.BACKOFF, 2, next_at=110.0)
    _, done = life(waits, (109.9, {}), (110.0, {}))
    assert done == [[], [Launch(3, None)]]
    _, ((end,),) = life(waits, (105.0, {"stop": StopKind.USER}))
    assert isinstance(end, End) and end.exit_code == 103


def test_progress_is_not_forgotten() -> None:
    """What a rank that is gone had done counts when the attempt is over."""
    rank = {"ranks": (_rank(0),)}
    state, _ = life(TRAINS, (100.1, {**rank, "steps": {0: 9}}), (100.2, {**rank, "steps": {0: 8}}))
    assert state.step == 9


def test_a_script_whose_steps_nobody_sees_has_started_after_ten_minutes() -> None:
    """Its failures are not failures to start."""
    unseen = replace(TRAINS, stepped=False, step=-1)
    policy = replace(POLICY, hang_timeout=float("inf"))
    for after, stepped in ((STARTED_AFTER, False), (STARTED_AFTER + 0.1, True)):
        state, _ = life(unseen, (100.0 + after, {}), policy=policy)
        assert state.stepped == stepped
