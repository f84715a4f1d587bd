"""The groups of a node that follows: the one that was released becomes the attempt's, whatever dies before it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.group.seat import Seat
from supervisor.nodes.follow.ordered import Ordered
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release

BODY = Release(1, {}, [])
SEAT = Seat((1, 1), 1)


class Group:
    """A group that was asked for. Its launcher is not known yet."""

    stillborn, launcher, expected, parked = False, None, None, False

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def look(self, now: float) -> None:
        """Nothing of it can be hurried."""


class Maker:
    """Has a fork server that does not fork yet, as it seems."""

    ready, not_before, server = object(), 0.0, None

    def __init__(self) -> None:
        self.made: list[Group] = []
        self.ended: list[Group] = []

    def fork(self, server: object, seat: Seat, expected: Release | None) -> Group:
        self.made.append(Group(seat))
        return self.made[-1]

    def disband(self, group: Group) -> None:
        self.ended.append(group)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def ordered(tmp_path: Path, maker: Maker) -> Ordered:
    made = Ordered(Spec("r", "m", ("x.py",), False, 1, "/"), RunDir(tmp_path), {}, lambda message: None)
    made._maker = maker  # type: ignore[assignment]
    return made


def taken(ordered: Ordered) -> Any:
    return ordered.take(0.0, lambda: BODY)


def test_a_fork_server_that_dies_after_the_order(ordered: Ordered, maker: Maker) -> None:
    """The group that was taken will never have a launcher: the attempt asks again, and gets another one at its seat."""
    assert taken(ordered) is None
    ordered.release("0001", SEAT)
    first, second = taken(ordered), taken(ordered)

    assert maker.made == [first, second] and {group.seat for group in maker.made} == {SEAT}


def test_the_group_that_waits(ordered: Ordered, maker: Maker) -> None:
    """Is taken if it was released, and the one that waits for a later attempt stays; one that is dead is replaced."""
    for name in ("0001", "0002"):
        ordered.make(name, SEAT, None)
    ordered.tick(0.0, set(), calm=False)
    waits, later = maker.made
    ordered.release("0001", SEAT)
    assert taken(ordered) is waits
    ordered.release("0002", SEAT)
    later.stillborn = True

    assert taken(ordered) is maker.made[2] and maker.ended == [later]


def test_what_was_released_outlives_the_link(ordered: Ordered, maker: Maker) -> None:
    """What waits is of no use to a leader who is away for a moment. The attempt that has begun goes on."""
    ordered.make("0002", SEAT, None)
    ordered.tick(0.0, set(), calm=False)
    ordered.release("0001", SEAT)
    ordered.drop_all()

    assert maker.ended == maker.made[:1] and taken(ordered) is maker.made[1]
