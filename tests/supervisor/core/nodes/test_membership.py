"""What the leader takes for proved of its followers, row by row."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.nodes.membership import DOUBT, MARGIN, Membership
from supervisor.core.nodes.nodes import NodeView

LEASE = 1.0


def two(attempt: int = 3) -> Membership:
    """Nodes 1 and 2 follow and are members of the attempt, since the time 10."""
    known = Membership.begin(0, "a", -1, {}, 0.0, LEASE)
    for node in (1, 2):
        known = known.joined(node, f"host{node}", node, None, 10.0, LEASE)
    return known.launched(attempt, (0, 1, 2), {0: 2, 1: 2, 2: 2})


def view(known: Membership, node: int, now: float) -> NodeView:
    (found,) = [each for each in known.nodes(3, 3, 30.0, now).views if each.node == node]
    return found


def test_a_lease_ends_at_the_follower_first() -> None:
    """Lost is who had no answer for the longest lease that it was granted, and the margin; a shorter lease that is
    granted later does not end it."""
    known = two().heard(1, 1, 12.0, 15.0).heard(1, 1, 12.2, 13.2).heard(2, 2, 16.0, 20.0)
    assert not known.looked(15.0 + MARGIN).lost
    lost = known.looked(15.1 + MARGIN)
    assert list(lost.lost) == [1] and "nothing was heard of it for 3.2 s" in lost.lost[1]
    assert view(lost, 1, 15.4).over and not view(lost, 1, 15.4).ready and view(lost, 1, 15.4).losses == 1
    assert [v.node for v in lost.nodes(3, 3, 30.0, 15.4).unfenced()] == [2]
    assert not known.heard(1, 7, 16.0, 99.0).looked(20.0).lost.keys() - {1}, "a beat of another link counts for nothing"


def test_a_lost_node_stays_lost() -> None:
    """It is back without its part, or with it: the attempt goes on without it, and what it still has is killed."""
    lost = two().heard(2, 2, 11.4, 20.0).looked(11.5)
    assert set(lost.lost) == {1} and lost.stale() == ((1, 3),), "it may only be slow to hear"
    again = lost.joined(1, "host1", 9, 3, 12.0, LEASE)
    assert 1 in again.lost and again.stale() == ((1, 3),) and not view(again, 1, 12.0).ready
    gone = again.told_gone(1, 9, 3)
    assert 1 in gone.lost and gone.stale() == () and view(gone, 1, 12.0).ready


def test_leashes_prove_it_at_once() -> None:
    """A closed link and the end of every rank; not one of them alone, and not the ranks of another attempt."""
    known = two().closed(1, 1).leash(1, 3, 2, ended=False).leash(1, 3, 3, ended=False).leash(1, 3, 2, ended=True)
    assert not known.leash(1, 2, 3, ended=True).looked(10.1).lost
    dead = known.leash(1, 3, 3, ended=True)
    assert "its 2 ranks are gone" in dead.looked(10.1).lost[1]
    linked = replace(dead, peers={**dead.peers, 1: replace(dead.peers[1], linked=True)})
    assert not linked.looked(10.1).lost
    assert not two().closed(1, 1).looked(10.1).lost, "no rank has a connection of its own"


def test_a_rank_that_has_become_another_program() -> None:
    """It has let go of its connection and lives: what ends its part is its lease, or another word."""
    known = two().leash(1, 3, 2, ended=False).leash(1, 3, 3, ended=False)
    for rank in (2, 3):
        known = known.leash(1, 3, rank, ended=True)
    dead = known.replaced(1, 2, frozenset({2, 3})).closed(1, 1)
    assert dead.looked(10.1).lost, "what was of another attempt is no matter of this one"
    flaps = known.replaced(1, 3, frozenset({3})).closed(1, 1)
    assert not flaps.looked(10.1).lost and flaps.looked(11.1 + MARGIN).lost
    again = flaps.launched(4, (0, 1), {0: 2, 1: 2}).leash(1, 4, 2, ended=True).leash(1, 4, 3, ended=True)
    assert again.looked(10.1).lost


def test_a_hello_without_the_attempt() -> None:
    """Is as good as its end there: what was sent on the old link is void."""
    back = two().closed(1, 1).joined(1, "host1", 5, None, 10.2, LEASE)
    assert back.gone == {1} and view(back, 1, 10.2).over and view(back, 1, 10.2).ready
    other = two().joined(1, "host1", 5, 2, 10.2, LEASE)
    assert other.gone == {1} and other.stale() == ((1, 2),) and not view(other, 1, 10.2).ready
    same = two().joined(1, "host1", 5, 3, 10.2, LEASE)
    assert not same.gone and same.stale() == () and not view(same, 1, 10.2).over


def test_a_hello_that_is_read_late() -> None:
    """Two links may be read in any order: the older one's hello changes nothing."""
    known = two().joined(1, "host1", 5, 3, 10.2, LEASE)
    assert known.joined(1, "host1", 4, None, 10.3, LEASE) == known
    assert known.closed(1, 4) == known and known.told_gone(1, 4, 3) == known


def test_what_a_new_leader_knows() -> None:
    """The members of the last attempt may run until the lease is over that the dead leader may have granted."""
    known = Membership.begin(0, "a", 3, {0: "a", 1: "b"}, 100.0, 3.0)
    assert [v.node for v in known.nodes(2, 2, 30.0, 100.0).unfenced()] == [1]
    assert not known.looked(103.0 + MARGIN).lost and known.looked(103.4).nodes(2, 2, 30.0, 103.4).unfenced() == ()
    assert known.joined(1, "b", 1, None, 100.5, LEASE).nodes(2, 2, 30.0, 100.5).unfenced() == ()
    back = known.joined(1, "b", 1, 3, 100.5, LEASE)
    assert back.nodes(2, 2, 30.0, 100.5).unfenced() != ()
    assert back.stale() == ((1, 3),), "it renews its lease, and would go on for ever"


def test_a_group_that_waits_is_void() -> None:
    """As soon as a link under it is another one, or none."""
    known = two()
    links = known.links((0, 1, 2))
    assert links == (1, 2) and known.closed(2, 2).links((0, 1, 2)) == (1, 0)
    assert known.joined(2, "host2", 8, 3, 11.0, LEASE).links((0, 1, 2)) == (1, 8)


def test_who_is_chosen() -> None:
    """The leader first, then those that have the state; a node that was lost twice comes last."""

    def peer(known: Membership, node: int, losses: int) -> Membership:
        return replace(known, peers={**known.peers, node: replace(known.peers[node], losses=losses)})

    known = two().told_gone(1, 1, 3).told_gone(2, 2, 3)
    for node in (3, 4):
        known = known.joined(node, "", node, None, 10.5, LEASE)
    assert known.nodes(3, 3, 30.0, 10.5).chosen() == (0, 1, 2)
    assert known.nodes(1, 9, 30.0, 10.5).chosen() == (0, 1, 2, 3, 4)
    assert peer(known, 1, 1).nodes(3, 3, 30.0, 10.5).chosen() == (0, 1, 2)
    assert peer(known, 1, 2).nodes(3, 3, 30.0, 10.5).chosen() == (0, 2, 3)
    assert peer(known, 1, 2).nodes(5, 5, 30.0, 10.5).chosen() == (0, 1, 2, 3, 4)
    assert known.closed(2, 2).nodes(3, 3, 30.0, 10.5).chosen() == (0, 1, 3)


def test_doubt() -> None:
    """Half a second of silence, or a closed link: what others complain about may be its doing."""
    known = two().heard(1, 1, 10.0, 12.0).heard(2, 2, 10.0, 12.0)
    assert not known.nodes(3, 3, 30.0, 10.0 + DOUBT).doubtful()
    assert known.nodes(3, 3, 30.0, 10.1 + DOUBT).doubtful()
    assert known.closed(1, 1).nodes(3, 3, 30.0, 10.0).doubtful()
    assert not known.closed(1, 1).joined(1, "host1", 5, None, 10.1, LEASE).nodes(3, 3, 30.0, 10.1).doubtful()
