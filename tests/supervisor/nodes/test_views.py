"""What the nodes of an attempt see, as one: by one clock, each note once, the stacks of all or of none."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.model import Exit, Observation, RankView
from supervisor.core.nodes.merge import LimbView
from supervisor.core.sample import Sample, Thread
from supervisor.core.stack import Stack, Stacks
from supervisor.core.telling.news import News
from supervisor.core.telling.progress import Trained
from supervisor.nodes.lead.views import Views
from supervisor.nodes.talk.messages import Seen
from trainer.rundir.codes import Phase

AHEAD = 1000.0
"""The clock of node 1 minus that of the leader."""


def looked(rank: int, now: float) -> Observation:
    return Observation(now, ranks=(RankView(rank, 3, Phase.TRAIN, now - 0.1, True),), steps={rank: 3})


def views() -> Views:
    found = Views()
    found.offsets[1] = AHEAD
    found.begin(4)
    return found


def test_one_clock() -> None:
    """Beats, notes and first steps of another node have the times of ours."""
    found = views()
    news = News({1: 22}, notes=((1, {"kind": "warning", "mono": AHEAD + 5.0}),), trained=Trained(3, 0, AHEAD + 6.0))
    found.take(1, Seen(4, looked(1, AHEAD + 7.0), news), 0.0)
    seen = found.observation(LimbView(0, looked(0, 7.0)), [1], 2, 7.0)
    told = found.news(News({0: 11}, trained=Trained(4, 1, 6.5)), [1])

    assert seen.now == 7.0 and [view.rank for view in seen.ranks] == [0, 1]
    assert all(abs(view.beat_at - 6.9) < 1e-6 for view in seen.ranks)
    assert (seen.steps, told.pids) == ({0: 3, 1: 3}, {0: 11, 1: 22})
    assert told.notes == ((1, {"kind": "warning", "mono": 5.0}),)
    assert told.trained == Trained(4, 0, 6.0)


def test_a_beat_stays_where_it_was() -> None:
    """A rank that stands still shows no sign of life when the clock of its node is known better, nor does its log. The
    next beat has the time by the clock as it is known then."""
    found, seen = views(), list[Observation]()
    still = replace(looked(1, AHEAD + 7.0), log_grew_at=AHEAD + 6.0)
    still = replace(still, ranks=(replace(still.ranks[0], sample=Sample(AHEAD + 6.5, Thread(()))),))
    for later, offset in ((0.0, AHEAD), (1.0, AHEAD - 0.001), (2.0, AHEAD + 0.002)):
        found.offsets[1] = offset
        found.take(1, Seen(4, replace(still, now=AHEAD + 7.0 + later), News()), 0.0)
        for _ in range(2):
            seen.append(found.observation(LimbView(0, looked(0, 7.0)), [1], 2, 7.0 + later))
    found.take(1, Seen(4, looked(1, AHEAD + 10.0), News()), 0.0)
    moved = found.observation(LimbView(0, looked(0, 7.0)), [1], 2, 10.0)

    assert {(each.ranks[1].beat_at, each.log_grew_at) for each in seen} == {(seen[0].ranks[1].beat_at, 6.0)}
    assert {each.ranks[1].sample and each.ranks[1].sample.at for each in seen} == {6.5}
    assert moved.ranks[1].beat_at == AHEAD + 9.9 - (AHEAD + 0.002)


def test_notes_come_once() -> None:
    """Each note is news once, also if a node looks twice between two looks of ours."""
    found = views()
    for number in (1, 2):
        found.take(
            1, Seen(4, looked(1, 0.0), News(notes=((1, {"kind": "warning", "n": number}),), joined=((1, number),))), 0.0
        )

    first, second = found.news(News(), [1]), found.news(News(), [1])

    assert [note["n"] for _, note in first.notes] == [1, 2] and len(first.joined) == 2
    assert (second.notes, second.joined) == ((), ())


def test_of_another_attempt() -> None:
    """What was seen of an earlier attempt is nothing of this one."""
    found = views()
    found.take(1, Seen(3, looked(1, 0.0), News({1: 22})), 0.0)

    assert [view.rank for view in found.observation(LimbView(0, looked(0, 0.0)), [1], 2, 0.0).ranks] == [0]
    assert found.news(News(), [1]).pids == {}


def test_stacks_of_all() -> None:
    """No conclusion is drawn from the stacks of some nodes, unless the others do not answer."""
    found = views()
    own = replace(looked(0, 10.0), stacks=Stacks(10.0, (Stack(0),)))
    found.asked(10.0, [1])
    found.take(1, Seen(4, replace(looked(1, AHEAD + 10.0), stacks=Stacks(AHEAD + 9.0, (Stack(1),))), News()), 0.0)
    old = found.observation(LimbView(0, own), [1], 2, 10.1).stacks
    late = found.observation(LimbView(0, own), [1], 2, 14.0).stacks
    found.take(1, Seen(4, replace(looked(1, AHEAD + 10.2), stacks=Stacks(AHEAD + 10.1, (Stack(1),))), News()), 0.0)
    both = found.observation(LimbView(0, own), [1], 2, 10.3).stacks

    assert old is None and late is not None
    assert both is not None and [stack.rank for stack in both.stacks] == [0, 1]


def test_blind() -> None:
    """A node that has looked, and does not any more, sees nothing of now."""
    found = views()
    before = found.blind(1, 100.0)
    found.take(1, Seen(4, looked(1, 0.0), News()), 100.0)

    assert (before, found.blind(1, 100.5), found.blind(1, 101.0)) == (False, False, True)
    found.begin(5)
    assert not found.blind(1, 200.0)


def test_an_older_look_comes_later() -> None:
    """A look that came with a beat does not replace a newer one, and what it tells is told all the same."""
    found = views()
    newer = replace(looked(1, 2.0), exits=(Exit(1, -9, 2.0),))
    found.take(1, Seen(4, newer, News({1: 22})), 0.0)
    found.take(1, Seen(4, looked(1, 1.0), News(notes=((1, {"kind": "warning"}),))), 0.0)

    assert len(found.observation(LimbView(0, looked(0, 0.0)), [1], 2, 0.0).exits) == 1
    told = found.news(News(), [1])
    assert (told.pids, len(told.notes)) == ({1: 22}, 1)
