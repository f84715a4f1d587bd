"""Every interleaving of hello, beat, lease, kill, gone, cut links, dead supervisors and time: never two attempts at
once, and always an attempt in the end. Each rule is needed: without it the search finds what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from supervisor.core.nodes.lease import Lease
from supervisor.core.nodes.membership import Membership
from tests.support.nodes_model import Model
from tests.support.nodes_search import explore
from tests.support.nodes_world import LEASE, Follower, World

LONG = pytest.mark.long
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize(
    ("model", "least"),
    [
        pytest.param(Model(), 1_000, id="only slow messages"),
        pytest.param(Model(least=2), 2_000, id="both are needed"),
        pytest.param(Model(leads=1, attempts=0), 3_000, id="the leader begins anew"),
        pytest.param(Model(leads=1), 7_000, id="the leader begins anew, twice the attempts", marks=LONG),
        pytest.param(Model(fails=1), 4_000, id="a rank fails", marks=LONG),
        pytest.param(Model(crashes=1), 8_000, id="a supervisor dies", marks=LONG),
        pytest.param(Model(crashes=1, leashes=True), 8_000, id="a supervisor dies and the leader sees it", marks=LONG),
        pytest.param(Model(cuts=1), 8_000, id="a link is cut", marks=LONG),
        pytest.param(Model(cuts=1, fails=1, attempts=0), 20_000, id="a link is cut and a rank fails", marks=LONG),
        pytest.param(Model(nodes=3, attempts=0), 50_000, id="three nodes", marks=LONG),
    ],
)
def test_all_worlds(model: Model, least: int) -> None:
    """None is wrong. There are at least so many: else the model has lost what it was about."""
    found = explore(model, settles=25)
    assert found.fault == "", (found.fault, found.trace)
    assert found.worlds >= least and found.launches > 3


def test_the_first_worlds_of_three_nodes() -> None:
    found = explore(Model(nodes=3), settles=25, most=2_000)
    assert found.fault == "", (found.fault, found.trace)
    assert found.worlds == 2_000


@dataclass(frozen=True)
class LeasesFromTheAnswer(Model):
    """Not from when the beat was sent (R1)."""

    def granted(self, lease: Lease, sent: float, now: float) -> Lease:
        return lease.granted(now, LEASE, now)


@dataclass(frozen=True)
class ClosedIsLost(Model):
    """A closed link is taken for the end of its node (R2)."""

    def looked(self, known: Membership, now: float) -> Membership:
        closed = [n for n in known.members if n in known.peers and not known.peers[n].linked]
        return replace(super().looked(known, now), lost={**known.lost, **dict.fromkeys(closed, "closed")})


@dataclass(frozen=True)
class NoMargin(Model):
    """A node is lost as soon as its lease is over, while its ranks are being killed (R2)."""

    def looked(self, known: Membership, now: float) -> Membership:
        return known.looked(now, 0.0)


@dataclass(frozen=True)
class HelloProvesNothing(Model):
    """Whoever comes back without its part is still waited for (R5)."""

    def joined(self, known: Membership, node: int, link: int, attempt: int | None, now: float) -> Membership:
        return replace(super().joined(known, node, link, attempt, now), gone=known.gone)


@dataclass(frozen=True)
class GroupsOutliveLinks(Model):
    """A group that waits over a node is released, though that node has a new link and nothing waits there (R6)."""

    def stands(self, world: World, nodes: tuple[int, ...]) -> bool:
        return world.waits is not None and world.waits[0] == nodes


@dataclass(frozen=True)
class AnyHelloCounts(Model):
    """The hello of an older link counts, though it was read after a newer one's."""

    def joined(self, known: Membership, node: int, link: int, attempt: int | None, now: float) -> Membership:
        peers = {n: replace(p, link=0) if n == node else p for n, p in known.peers.items()}
        return super().joined(replace(known, peers=peers), node, link, attempt, now)


@dataclass(frozen=True)
class LeadersForget(Model):
    """A leader that begins anew does not wait for the leases of the one before it."""

    def lead(self, world: World) -> World:
        after = super().lead(world)
        return replace(after, known=Membership.begin(0, "leader", world.state.attempt, {}, world.now, LEASE))


@dataclass(frozen=True)
class OldAttemptsGoOn(Model):
    """A leader that begins anew does not end what it finds of the one before it."""

    def lead(self, world: World) -> World:
        after = super().lead(world)
        return replace(after, known=replace(after.known, abandoned=False))


@dataclass(frozen=True)
class WardensSleep(Model):
    """A node whose lease is over does not kill its ranks."""

    @staticmethod
    def must_fence(f: Follower, now: float) -> bool:
        return False


@pytest.mark.parametrize(
    ("model", "goes_wrong"),
    [
        (LeasesFromTheAnswer(), "begins"),
        (ClosedIsLost(cuts=1), "begins"),
        (NoMargin(), "begins"),
        (HelloProvesNothing(least=2, cuts=1), "settles"),
        (GroupsOutliveLinks(least=2, cuts=1, fails=1), "settles"),
        (AnyHelloCounts(cuts=1), "begins"),
        (LeadersForget(leads=1, wait=0.0), "begins"),
        (OldAttemptsGoOn(leads=1), "settles"),
        (WardensSleep(), "begins"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_each_rule_is_needed(model: Model, goes_wrong: str) -> None:
    """Without it, the search finds two attempts at once, or a run that waits for ever."""
    found = explore(model, settles=goes_wrong == "settles")
    assert goes_wrong in found.fault and found.trace, f"{found.worlds} worlds, and nothing wrong"
