"""Which nodes train together, where some of them cannot reach each other."""

from __future__ import annotations

import pytest

from supervisor.core.actions import End
from supervisor.core.nodes.gathering import gather
from supervisor.core.nodes.nodes import Nodes, NodeView
from supervisor.core.nodes.roads import LONGEST, Road, Roads, together


def three(known: Roads, now: float, least: int = 3) -> Nodes:
    views = tuple(NodeView(node, f"host{node}", leads=node == 0, ready=True) for node in range(3))
    return Nodes(least, 3, 30.0, views, known.cut, known.untried(now))


def all_open(*nodes: int, cut: dict[Road, str] | None = None) -> Roads:
    known = Roads()
    for node in nodes:
        known = known.joined(node, 1.0)
    for caller in nodes:
        for node in nodes:
            if caller != node:
                known = known.told((caller, node), (cut or {}).get((caller, node), ""))
    return known


def test_no_attempt_before_the_roads_are_known() -> None:
    """Each node has called each other one, or could have for some seconds."""
    known = Roads().joined(0, 1.0).joined(1, 1.0).joined(2, 1.0)

    assert gather(three(known, 2.0), True, 1.0, 2.0).nodes is None
    assert gather(three(known, 1.0 + LONGEST), True, 1.0, 1.0 + LONGEST).nodes == (0, 1, 2)
    assert gather(three(all_open(0, 1, 2), 1.1), True, 1.0, 1.1).nodes == (0, 1, 2)


def test_a_pair_that_cannot_meet_is_named() -> None:
    """The run waits for the network, and ends with both names: at its beginning as a request that cannot be met."""
    known = all_open(0, 1, 2, cut={(2, 1): "at 10.0.0.2:7: nobody answers"})
    said = "3 of 3 nodes are there, and node 2 (host2) cannot reach node 1 (host1) at 10.0.0.2:7: nobody answers"

    assert gather(three(known, 2.0), True, 1.0, 2.0).told[0].fields["text"] == said  # type: ignore[union-attr]
    ends = [gather(three(known, 32.0), first, 1.0, 32.0).end for first in (True, False)]
    assert [(end.exit_code, end.reason.startswith(said)) for end in ends if isinstance(end, End)] == [
        (2, True),
        (75, True),
    ]
    # With fewer nodes there is an attempt without one of them.
    assert gather(three(known, 2.0, least=2), False, 1.0, 2.0).nodes == (0, 1)
    assert gather(three(known.told((2, 1), ""), 2.0), False, 1.0, 2.0).nodes == (0, 1, 2)


def test_what_a_node_said_before_it_left_is_void() -> None:
    """A node that comes back is called anew, and its old word does not count."""
    known = all_open(0, 1, 2, cut={(0, 2): "x"})

    assert known.left(2).cut == {} and known.left(2).untried(2.0) == frozenset()
    assert known.left(2).told((1, 2), "late") == known.left(2)
    assert known.joined(2, 5.0).untried(6.0) == {(0, 2), (2, 0), (1, 2), (2, 1)}


def test_an_address_that_a_setting_has_chosen() -> None:
    """What is certain to be used is waited for, and cuts the road if it fails; what may be used is neither. With the
    node goes what was known of it."""
    known = all_open(0, 1, 2).joined(2, 5.0, frozenset({"gloo"}))
    both = {(0, 2), (1, 2)}
    for caller in (0, 1):
        known = known.told((caller, 2), "").told((2, caller), "")
    assert known.untried(6.0) == both and known.cut == {}

    known = known.told((0, 2), "", "gloo").told((1, 2), "x", "gloo").told((0, 1), "y", "nccl")
    assert known.untried(6.0) == frozenset() and known.cut == {(1, 2): "x"}
    assert known.failed == {((1, 2), "gloo"): "x", ((0, 1), "nccl"): "y"}
    assert known.told((1, 2), "", "gloo").cut == {} == known.joined(2, 7.0).cut
    assert known.left(2).failed == {((0, 1), "nccl"): "y"}
    assert known.told((1, 2), "own").cut == {(1, 2): "own"}


@pytest.mark.parametrize(
    ("cut", "most", "found"),
    [
        ((), 3, (0, 1, 2)),
        ((), 2, (0, 1)),
        (((1, 2),), 3, (0, 3, 1)),
        (((2, 1), (1, 3)), 3, (0, 2, 3)),
        (((0, 1), (2, 0), (3, 0)), 4, (0,)),
        (((7, 1),), 3, (0, 1, 2)),
    ],
)
def test_who_trains_together(cut: tuple[Road, ...], most: int, found: tuple[int, ...]) -> None:
    """The leader is always there; the node that is cut off from many comes last."""
    assert together((0, 1, 2, 3), cut, most) == found
