"""Ranks that have not come, ranks that have left, a launcher that stays behind: each has its verdict, or is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor.core import machine
from supervisor.core.actions import Action, DumpStacks
from supervisor.core.diagnosis.presence import LATE, UNTOLD
from supervisor.core.hangs.hang import ASK, ASK_BUSY, STOPPED_FOR
from supervisor.core.machine import Mode
from supervisor.core.members import Group, Member
from supervisor.core.model import Cause, Exit, History, Observation, Policy, RankView, Verdict
from supervisor.core.stack import Frame, Stack, Stacks
from supervisor.process import kernel
from tests.support.waiting import until
from trainer.rundir.codes import Phase

TICK = 0.2
LAUNCHER = Member(10, launcher=True)
LIB = "/venv/lib/python3.11/site-packages/torch/distributed"
MAIN = Frame("main", "/home/me/train.py", 30)
WAITS = (Frame("all_reduce", f"{LIB}/distributed_c10d.py", 2501), MAIN)
READS = (Frame("read", "/usr/lib/python3.11/ssl.py", 1), MAIN)
SAVES = (Frame("write_data", f"{LIB}/checkpoint/filesystem.py", 9), MAIN)


class Life:
    """A group of two, looked at every TICK by the real machine."""

    def __init__(self, policy: Policy = Policy(startup_timeout=300.0)) -> None:  # noqa: B008 (frozen)
        self.policy = policy
        self.now = 1000.0
        self.state = machine.State(Mode.RUNNING, 0, History(), launched_at=self.now)
        self.group = Group(2, LAUNCHER)
        self.ranks: dict[int, RankView] = {}
        self.exits: list[Exit] = []
        self.steps: dict[int, int] = {}
        self.standing: dict[int, tuple[Frame, ...]] = {}
        self.stacks: Stacks | None = None
        self.asked = 0

    def train(self, steps: int = 20) -> None:
        for step in range(1, steps + 1):
            for rank in range(2):
                self.steps[rank] = step
                self.ranks[rank] = RankView(rank, step, Phase.TRAIN, self.now, False, cpu=step * TICK)
            assert self.pass_time(TICK) is None

    def leave(self, rank: int, status: int | None = 0) -> None:
        self.ranks.pop(rank, None)
        self.exits.append(Exit(rank, status, self.now))

    def look(self) -> list[Action]:
        seen = Observation(
            now=self.now,
            ranks=tuple(self.ranks.values()),
            steps=self.steps,
            group=self.group,
            exits=tuple(self.exits),
            stacks=self.stacks,
        )
        self.state, actions = machine.step(self.policy, self.state, seen)
        if DumpStacks() in actions:
            self.asked += 1
            self.stacks = Stacks(self.now, tuple(Stack(rank, self.standing.get(rank, ())) for rank in self.ranks))
        return actions

    def pass_time(self, seconds: float) -> Verdict | None:
        """The verdict, if there is one by then."""
        end = self.now + seconds
        while self.now < end and self.state.verdict is None:
            self.look()
            self.now += TICK
        return self.state.verdict


def test_all_ranks_have_left_and_the_launcher_stays() -> None:
    """With 0 each: the run is finished, whatever the launcher does. Where one's end is unknown, the launcher has
    time."""
    life = Life()
    life.train()
    life.leave(0)
    life.leave(1)
    began = life.now
    verdict = life.pass_time(60.0)
    assert verdict is not None and verdict.cause is Cause.FINISHED and "at step 20" in verdict.reason
    assert LATE - TICK <= verdict.at - began + 1e-6 <= LATE + 2 * TICK

    life = Life()
    life.train()
    life.leave(0)
    life.leave(1, None)
    assert life.pass_time(UNTOLD - 2 * TICK) is None
    verdict = life.pass_time(60.0)
    assert verdict is not None and verdict.cause is Cause.LAUNCHER_DIED


def test_a_launcher_that_fails_after_the_work_is_done() -> None:
    """Every rank has exited with 0: no death of the launcher makes that undone."""
    life = Life()
    life.train()
    life.leave(0)
    life.leave(1)
    life.exits.append(Exit(None, -9, life.now))
    life.group = Group(2)
    verdict = life.pass_time(TICK)
    assert verdict is not None and verdict.cause is Cause.FINISHED


@pytest.mark.parametrize(
    ("member", "words"),
    [(Member(11, 1, stopped=True), "rank 1 (pid 11)"), (Member(12, stopped=True), "(pid 12)"), (LAUNCHER, "launcher")],
)
def test_stopped_before_it_has_registered(member: Member, words: str) -> None:
    """State T is evidence by itself, also of a process that says nothing yet; a launcher's only while it is needed."""
    life = Life()
    launcher = Member(10, stopped=member.launcher, launcher=True)
    life.group = Group(2, launcher, () if member.launcher else (member,))
    life.ranks[0] = RankView(0, 0, Phase.STARTUP, life.now, False)
    verdict = life.pass_time(10.0)
    assert verdict is not None and (verdict.cause, verdict.rank) == (Cause.STOPPED, member.rank)
    assert words in verdict.reason and verdict.at - 1000.0 <= STOPPED_FOR + 2 * TICK

    trains = Life()
    trains.group = Group(2, launcher)
    trains.ranks[1] = RankView(1, 0, Phase.TRAIN, trains.now, False)
    trains.train()


def test_a_rank_that_never_comes() -> None:
    """One that does not register has the time of a start, and is named; a pause of the machine is none of it."""
    life = Life()
    life.ranks[0] = RankView(0, 0, Phase.STARTUP, life.now, False, replaced=True)
    life.look()
    life.now += 4000.0
    assert life.pass_time(life.policy.startup_timeout - 1.0) is None
    verdict = life.pass_time(2.0)
    assert verdict is not None and (verdict.cause, verdict.rank) == (Cause.HANG, 1)


@pytest.mark.parametrize("status", [0, None])
def test_a_rank_that_is_waited_for_has_left(status: int | None) -> None:
    """The one that left is named, at its own step; those who wait for it are told with their place."""
    life = Life()
    life.train()
    life.steps[1] = 17
    life.leave(1, status)
    life.standing[0] = WAITS
    began = life.now
    verdict = life.pass_time(60.0)
    assert verdict is not None and (verdict.cause, verdict.rank, verdict.step) == (Cause.EXCEPTION, 1, 17)
    assert "rank 0 waits for it" in verdict.reason and "all_reduce" in verdict.reason
    assert ("rank 1 left with 0 at step 17" in verdict.reason) == (status == 0)
    assert verdict.at - began <= ASK + 3 * TICK


def test_a_script_that_is_over_while_its_process_is_not() -> None:
    """It excuses nobody who waits for it, unless it still does with the others what they wait for."""
    life = Life()
    life.train()
    life.ranks[1] = RankView(1, 20, Phase.TEARDOWN, life.now, False)
    life.standing = {0: WAITS, 1: READS}
    verdict = life.pass_time(20.0)
    assert verdict is not None and verdict.rank == 1 and "end of its script at step 20" in verdict.reason

    life = Life()
    life.train()
    life.ranks[1] = RankView(1, 20, Phase.TEARDOWN, life.now, False)
    life.standing = {0: WAITS, 1: WAITS}
    assert life.pass_time(20.0) is None


@pytest.mark.parametrize("frames", [READS, SAVES])
def test_to_leave_early_is_no_failure(frames: tuple[Frame, ...]) -> None:
    """The other one uploads, evaluates or saves: it is asked, ever less often, and let be; then it comes to a
    collective."""
    life = Life()
    life.train()
    life.leave(1)
    life.standing[0] = frames
    assert life.pass_time(28.0) is None
    assert life.asked == 3
    for _ in range(100):
        life.ranks[0] = RankView(0, 20, Phase.TRAIN, 1000.0, False, cpu=life.ranks[0].cpu + TICK)
        assert life.pass_time(TICK) is None
    life.standing[0] = WAITS
    verdict = life.pass_time(ASK_BUSY + 1.0)
    assert verdict is not None and (verdict.cause, verdict.rank) == (Cause.EXCEPTION, 1)


def test_off_asks_nobody() -> None:
    life = Life(Policy(hang_timeout=float("inf")))
    life.train()
    life.leave(1)
    life.standing[0] = WAITS
    assert life.pass_time(100.0) is None and life.asked == 0


def test_a_process_that_ends_has_not_become_another_program() -> None:
    """Its memory is gone before it is, and what that says of its files is nothing."""
    child = subprocess.Popen(["sleep", "100"])
    try:
        assert kernel.maps(child.pid, Path("/run/attempts/0000/beats")) is False
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert kernel.maps(child.pid, Path("/run/attempts/0000/beats")) is None
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(("events", "polls"), [(64, True), (65, False)])
def test_gloos_thread_is_known_without_its_name(events: int, polls: bool) -> None:
    """Beside it, a rank that looks for a lock file again and again is one that nothing else can wake. Any other thread
    that waits for a descriptor may be woken by somebody."""
    code = f"""
import select, threading, time
loop = select.epoll()
threading.Thread(target=lambda: [loop.poll(0.01, {events}) for _ in range(10**6)], daemon=True).start()
print(flush=True)
while True: time.sleep(0.2)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        # Now and then a thread runs just when it is looked at, or waits for a CPU: then nothing can be said of it.
        seen = [kernel.closely(child.pid).polls for _ in range(20) if time.sleep(0.01) is None]
        if polls:
            until(lambda: seen.append(kernel.closely(child.pid).polls) or seen.count(True) > 10)
        else:
            assert True not in seen
    finally:
        child.kill()
        child.communicate()
