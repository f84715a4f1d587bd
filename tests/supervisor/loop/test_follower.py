"""The loop of a node that follows, without a leader: what it cannot do now it does later, and nothing is forgotten."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from supervisor.errors import Refusal
from supervisor.group.seat import Seat
from supervisor.loop import follower as module
from supervisor.loop.follower import Follower, Node
from supervisor.nodes import line as links
from supervisor.nodes.talk import messages as says
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release

FULL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Anything:
    """Does nothing, whatever it is asked."""

    fd = -1

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Line(Anything):
    """A line on which somebody says what a test wants, and keeps what was sent."""

    leader = "leader"
    node: int | None = None

    def __init__(self) -> None:
        self.said = deque[links.Event]()
        self.sent: list[msgspec.Struct] = []

    def take(self) -> list[links.Event]:
        taken = list(self.said)
        self.said.clear()
        return taken

    def send(self, body: bytes) -> None:
        self.sent.append(says.up(body))


class Duty(Anything):
    """Fails as often as it shall, and keeps what it was asked to do."""

    watch = newest = None
    busy = True
    limb = Anything()

    def __init__(self) -> None:
        self.fails: Iterator[Exception] = iter([])
        self.did: list[str] = []
        self.groups = self

    def _do(self, what: str) -> None:
        for error in self.fails:
            raise error
        self.did.append(what)

    def make(self, group: str, seat: Seat, expected: Release | None) -> None:
        self._do(group)

    def look(self, now: float, ended: set[int]) -> list[msgspec.Struct]:
        self._do(f"look {sorted(ended)}")
        return []

    def fence(self, now: float) -> None:
        self._do("fence")

    def freed(self) -> bool:
        return False

    def fds(self) -> list[int]:
        return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which goes only while somebody sleeps."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)))
    monkeypatch.setattr(module, "sleep", lambda *args: {7})
    return now


@pytest.fixture
def follower(tmp_path: Path, clock: list[float]) -> Follower:
    node: Any = Node(1, "127.0.0.2", 1, {}, Anything(), 30.0, Anything())  # type: ignore[arg-type]
    made = Follower(Line(), RunDir(tmp_path), node, {}, lambda text: None, lambda: clock[0])  # type: ignore[arg-type]
    made._reaper = made._eyes = Anything()  # type: ignore[assignment]
    made._eyes.take = made._node.roads.take = list  # type: ignore[method-assign]
    return made


def order(group: str) -> links.Received:
    return links.Received(says.encode(says.MakeGroup(group, Seat((1, 1)))))


def test_without_descriptors(follower: Follower) -> None:
    """Whatever fails for want of them is done when there are some, in order and once; the run's events have it once."""
    line, duty = follower._line, Duty()
    assert isinstance(line, Line)
    follower._duty, follower._linked = duty, True  # type: ignore[assignment]
    line.said += [order("a"), order("b")]
    duty.fails = iter([FULL, MemoryError(), FULL])
    turns = [follower._turn({3}, -1) for _ in range(3)]
    assert turns == [(None, {3})] * 3 and duty.did == []
    line.said.append(order("c"))
    assert follower._turn({3}, -1) == (None, {7})

    assert duty.did == ["a", "b", "c", "look [3]"]
    told = [message.fields["text"] for message in line.sent if isinstance(message, says.Told)]
    assert len(told) == 2 and "Too many open files" in told[0]


def test_the_run_is_over_while_there_are_none(follower: Follower) -> None:
    """What the leader has said last is obeyed, though nothing here can be looked at any more."""
    line, duty = follower._line, Duty()
    assert isinstance(line, Line)
    follower._duty, follower._linked = duty, True  # type: ignore[assignment]
    line.said.append(links.Received(says.encode(says.Over(103, "stopped", False))))
    duty.fails = iter([FULL])

    assert [follower._turn(set(), -1)[0] for _ in range(2)] == [None, 103] and duty.did == ["fence"]


def test_a_node_without_a_part_ends(follower: Follower) -> None:
    """Nothing runs there, so nothing is lost: it says what has failed."""
    follower._node.roads.take = lambda: (_ for _ in ()).throw(FULL)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Too many open files"):
        follower._turn(set(), -1)


def welcome(nonce: str) -> links.Welcomed:
    return links.Welcomed(says.encode(says.Welcome(1, "/run", ".probe", nonce, b"{}")))


def test_a_disk_that_does_not_answer(follower: Follower, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is asked again for some seconds, at the welcome of a leader that is new here; another link to the same leader
    asks nothing. What a new leader has not begun is ended first."""
    asked, broken = list[str](), [True]

    def shares(run: RunDir, name: str, nonce: str) -> bool:
        asked.append(nonce)
        if broken[0]:
            broken[0] = clock[0] < 101.0
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return nonce != "another"

    monkeypatch.setattr(module, "shares", shares)
    duty = follower._duty = Duty()  # type: ignore[assignment]
    follower._hear(welcome("first"))
    assert follower._linked and set(asked) == {"first"} and len(asked) > 2 and duty.did == ["fence"]
    asked.clear()
    follower._hear(welcome("first"))
    assert asked == [] and duty.did == ["fence"]
    with pytest.raises(Refusal, match="is not the folder that the leader calls"):
        follower._hear(welcome("another"))
    monkeypatch.setattr(module, "shares", lambda *args: (_ for _ in ()).throw(FULL))
    with pytest.raises(Refusal, match="cannot be read"):
        follower._hear(welcome("second"))
