"""A hub and a line as a leader and a follower use them: what they tell, waited for, and the way to be admitted."""

from __future__ import annotations

import os
import time
from typing import Any, TypeVar

from supervisor.nodes import hub, line
from supervisor.nodes.hub import Hub
from supervisor.nodes.line import Line
from supervisor.nodes.wire.dialing import connect
from supervisor.nodes.wire.link import Link
from tests.support.waiting import TIME_LIMIT, until

TOKEN = b"the token of this run"
LEASE = 60.0
"""Longer than any machine stands still: what ends a lease here is the clock of the test."""
T = TypeVar("T")


def address(last: int = 1) -> str:
    """An address of this machine that this process has for itself: a port that is free there stays free."""
    high, low = divmod(os.getpid() % 0xFFFF, 256)
    return f"127.{1 + high % 254}.{low}.{last}"


HOST = address()


class Loop:
    """Keeps what a hub or a line has told."""

    def __init__(self, of: Hub | Line) -> None:
        self.of, self.events = of, list[Any]()

    def until(self, kind: type[T], seconds: float = TIME_LIMIT) -> T:
        """The next event of that kind. Those before it are passed over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.events += self.of.take()
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            time.sleep(0.002)
        raise AssertionError(f"no {kind.__name__}")

    def none(self, kind: type, seconds: float = 0.1) -> None:
        """No event of that kind comes for so long."""
        time.sleep(seconds)
        self.events += self.of.take()
        assert not [event for event in self.events if isinstance(event, kind)]


def admitted(leader: Hub, follower: Line, node: int = 1) -> tuple[Loop, Loop, int]:
    """Their loops, and the number of the link."""
    theirs, mine = Loop(leader), Loop(follower)
    mine.until(line.Linked)
    follower.hello(b"it is me")
    asked = theirs.until(hub.Asked)
    assert asked.hello == b"it is me" and asked.host == HOST
    assert leader.admit(asked.link, node, b"welcome") == leader.seconds
    assert mine.until(line.Welcomed).body == b"welcome"
    return theirs, mine, asked.link


def linked(leader: Hub) -> Link:
    """Somebody with the token. How long the greeting takes counts for nothing here."""
    dialing = connect(HOST, leader.port, TOKEN, 0.0)
    made: list[Link] = []
    until(lambda: made.extend(filter(None, [dialing.tick(0.0)])) or made)
    return made[0]
