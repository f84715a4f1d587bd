"""Lives of ranks as the hang rule sees them: steps, silences, and samples of the stacks meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from types import MappingProxyType

from supervisor.core.hangs.hang import Hang, Silence, look, unexplained
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import Observation, Policy, RankView
from supervisor.core.sample import Loop, Sample, Thread, Wait
from supervisor.core.stack import Frame
from trainer.rundir.codes import Phase

AUTO = Policy(startup_timeout=600.0)
TICK = 0.2
QUICK = Pace(restart=0.2)
"""Of a run that has restarted in 0.2 s."""


EMPTY: Mapping[int, Sample] = MappingProxyType({})
WORK = (Frame("evaluate", "/home/u/train.py", 40),)
BARRIER = (Frame("barrier", "/x/site-packages/torch/distributed/distributed_c10d.py", 4000), *WORK)
MET = Sample(0, Thread(BARRIER, wait=Wait.LOCK))
LOOP = Sample(0, Thread(WORK, gil=True, wait=Wait.NONE, loop=Loop.WHILE, plain=True))
LOCK = Sample(0, Thread(WORK, wait=Wait.LOCK))
UPLOAD = Sample(0, Thread(WORK, wait=Wait.SOCKET))
NATIVE = Sample(0, Thread(WORK, wait=Wait.NONE))
MOVING = Sample(0, Thread(WORK, wait=Wait.NONE), moved=1)


class Life:
    """Ranks in step, looked at every TICK; what they do and what the kernel says of it is up to the test."""

    def __init__(self, policy: Policy = AUTO, announces: bool = True, ranks: int = 1, pace: Pace = QUICK) -> None:
        self.policy = policy
        self.hang = Hang(pace)
        self.now = 1000.0
        self.views = [RankView(rank, 0, Phase.STARTUP, self.now, announces) for rank in range(ranks)]
        self.looked = self.now
        self.log_grew_at = 0.0
        self.asked: Set[int] = frozenset()
        self.tick = TICK

    def look(self) -> Silence | None:
        self.looked = self.now
        seen = Observation(
            now=self.now,
            ranks=tuple(self.views),
            steps={v.rank: v.step for v in self.views if v.step},
            safe_step=max(v.step for v in self.views),
            standby=True,
            log_grew_at=self.log_grew_at,
        )
        self.hang, silence = look(self.hang, self.policy, seen)
        self.asked = unexplained(self.hang, self.policy, seen).keys()
        return silence

    def set(self, rank: int | None = None, **changes: object) -> None:
        for view in list(self.views):
            if rank is None or view.rank == rank:
                self.views[view.rank] = replace(view, **changes)  # type: ignore[arg-type]

    def pass_time(
        self, seconds: float, busy: frozenset[int] = frozenset(), doing: Mapping[int, Sample] = EMPTY
    ) -> tuple[float, Silence | None]:
        """The seconds passed until a verdict, and the verdict; ranks in `busy` use the CPU. Who is asked for is seen to
        be `doing` something, by now and then a sample."""
        start, end = self.now, self.now + seconds
        if doing:
            self.set(sampled=True)
        while self.now < end:
            ahead = min(self.looked + self.tick, end) - self.now
            self.now += ahead
            for rank in busy:
                self.set(rank, cpu=self.views[rank].cpu + ahead)
            for rank in self.asked & doing.keys():
                moves = doing[rank].moved
                self.set(rank, sample=replace(doing[rank], at=self.now, moved=moves and int(self.now * 10)))
            if self.now >= self.looked + self.tick - 1e-9 and (silence := self.look()):
                return self.now - start, silence
        return seconds, None

    def train(self, steps: int, seconds: float, busy: bool = True) -> Silence | None:
        """`steps` steps of `seconds` each, by all ranks; the first verdict, if there is one."""
        for _ in range(steps):
            everyone = frozenset(range(len(self.views))) if busy else frozenset[int]()
            if silence := self.pass_time(seconds, everyone)[1]:
                return silence
            step = self.views[0].step + 1
            self.set(step=step, phase=Phase.TRAIN, beat_at=self.now)
        return None


def trained(seconds: float = 0.1, **more: object) -> Life:
    life = Life(**more)  # type: ignore[arg-type]
    assert life.train(max(20, int(4 / seconds)), seconds) is None
    return life
