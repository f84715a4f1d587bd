"""The parts of a group on other nodes: ordered together, parked together, released or dropped once."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest

from supervisor.group.seat import Seat
from supervisor.nodes.lead.parts import Part, Parts
from supervisor.nodes.talk import messages as says
from supervisor.run.spec import Spec
from trainer.rundir.records.gate import Release

SPEC = Spec("r", "m", ("x.py",), False, 2, "/")
BODY = Release(1, {}, [])


class Told:
    """What each node was told, and the numbers of the links to them."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, msgspec.Struct]] = []
        self.links = {1: 11, 2: 12, 3: 13}
        self.parts = Parts(SPEC, "127.0.0.1", lambda node, message: self.messages.append((node, message)))
        self.ordered: list[Part] = []

    def order(self, *nodes: int) -> tuple[Seat, Part]:
        seat, part = self.parts.order(nodes, lambda nodes: tuple(self.links[node] for node in nodes[1:]))
        self.ordered.append(part)
        return seat, part


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    for part in told.ordered:
        part.drop()


def test_seats(told: Told) -> None:
    """Each node gets its own ranks, and all the same place to meet, which nobody else can take."""
    seat, _ = told.order(0, 2, 3)

    assert (seat.ranks, seat.world) == (range(2), 6)
    ordered = {node: message.seat for node, message in told.messages if isinstance(message, says.MakeGroup)}
    assert {node: other.ranks for node, other in ordered.items()} == {2: range(2, 4), 3: range(4, 6)}
    assert {(other.host, other.port, other.sizes) for other in ordered.values()} == {(seat.host, seat.port, (2, 2, 2))}
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((seat.host, seat.port))
    with socket.socket() as launcher:
        launcher.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        launcher.bind((seat.host, seat.port))
        launcher.listen()


def test_parked_and_released(told: Told) -> None:
    """It waits when it waits on every node; after its release a drop means nothing."""
    _, part = told.order(0, 1, 2)
    told.parts.parked(1, part.name)
    half = part.parked
    told.parts.parked(2, part.name)

    assert (half, part.parked, part.lost) == (False, True, "")

    del told.messages[:]
    part.release(BODY)
    part.drop()

    assert [(node, type(message)) for node, message in told.messages] == [(n, says.ReleaseGroup) for n in (1, 2)]


def test_lost(told: Told) -> None:
    """A group is of no use once a node says so, has a new link, or is no node of the attempt that is due."""
    _, dead = told.order(0, 1)
    _, cut = told.order(0, 2)
    _, other = told.order(0, 3)

    told.parts.lost(dead.name, "node 1: it died")
    told.links[2] = 99
    told.parts.due = (0, 1)

    assert dead.lost == "node 1: it died"
    assert cut.lost == "a node has come or gone"
    assert other.lost == "the next attempt has other nodes"

    told.parts.due, told.parts.wanted = (), (0, 3, 4)
    assert other.lost == "the next attempt has other nodes"

    del told.messages[:]
    dead.drop()
    dead.drop()

    assert told.messages == [(1, says.DropGroup(dead.name))]


def test_one_node_is_left(told: Told) -> None:
    """A group of one node has nowhere to meet over the network, and still is for that one node only."""
    seat, part = told.order(0)

    assert (seat, part.parked, told.messages) == (Seat((2,)), True, [])
    told.parts.due = (0, 1)
    assert part.lost
