"""What all nodes see, as one: the launchers' ends, the group, and the evidence of the node that failed first."""

from __future__ import annotations

import pytest

from supervisor.core.diagnosis.diagnose import diagnose
from supervisor.core.evidence import Evidence, Memory, OomKill
from supervisor.core.members import Group, Member
from supervisor.core.model import Cause, Exit, Observation, Raised
from supervisor.core.nodes.merge import LimbView, merge

AHEAD = 500.0


def of(node: int, *exits: Exit, offset: float = 0.0, **more: object) -> LimbView:
    group = Group(1, Member(100 + node, launcher=True))
    seen = Observation(10.0 + offset, exits=exits, group=group, **more)  # type: ignore[arg-type]
    return LimbView(node, seen, lambda at: at - offset)


@pytest.mark.parametrize(
    ("views", "cause"),
    [
        # Node 1 is not done yet, or has not even looked.
        ([of(0, Exit(0, 0, 9.0), Exit(None, 0, 9.1)), of(1)], None),
        ([of(0, Exit(0, 0, 9.0), Exit(None, 0, 9.1))], None),
        ([of(0, Exit(0, 0, 9.0), Exit(None, 0, 9.1)), of(1, Exit(1, 0, 9.0), Exit(None, 0, 9.2))], Cause.FINISHED),
        ([of(0), of(1, Exit(None, -9, 9.2))], Cause.LAUNCHER_DIED),
        ([of(0), of(1, Exit(1, -9, 9.2))], Cause.KILLED),
    ],
)
def test_the_launchers_are_one(views: list[LimbView], cause: Cause | None) -> None:
    """The attempt is finished when every launcher is; one that died is enough for a failure."""
    verdict = diagnose(merge(10.0, views, members=2, world=2), True, 5)

    assert (verdict and verdict.cause) == cause


def test_the_first_failure_by_one_clock() -> None:
    """The earliest failure is the cause, whatever the clocks of the nodes say."""
    late = of(0, raised=(Raised(0, "ValueError", "second", "b:2", 9.0),))
    early = of(1, raised=(Raised(1, "ValueError", "first", "a:1", AHEAD + 8.0),), offset=AHEAD)
    seen = merge(10.0, [late, early], members=2, world=2)
    verdict = diagnose(seen, True, 5)

    assert verdict is not None and (verdict.rank, verdict.failed_at) == (1, 8.0)


def test_whose_counters_count() -> None:
    """A rank killed on node 1 was killed by that node's OOM killer, if by any: pids of node 0 say nothing."""
    here = of(0, evidence=Evidence(Memory(1, (OomKill(7),)), {0: 3}))
    there = of(1, Exit(1, -9, 9.0), evidence=Evidence(Memory(0, ()), {1: 7}))
    seen = merge(10.0, [here, there], members=2, world=2)
    verdict = diagnose(seen, True, 5)

    assert verdict is not None and verdict.cause is Cause.KILLED
    assert seen.evidence.pids == {0: 3, 1: 7}


def test_the_group() -> None:
    """It has the ranks of all nodes, and a launcher as long as one lives."""
    unborn = Member(5, 1)
    other = LimbView(1, Observation(10.0, group=Group(1, None, (unborn,)), launch_error="no room"))
    seen = merge(10.0, [of(0), other], members=2, world=2)

    assert seen.group == Group(2, Member(100, launcher=True), (unborn,))
    assert seen.launch_error == "on node 1: no room"
    assert merge(10.0, [LimbView(0, Observation(10.0)), other], members=2, world=2).group is None
