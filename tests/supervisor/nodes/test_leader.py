"""A leader and the link of a node to it, over real sockets: what a node is told again when it has made a new link."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest

from supervisor.core.actions import Reach
from supervisor.core.machine import Mode
from supervisor.core.model import Observation
from supervisor.core.nodes.membership import Membership
from supervisor.core.telling.news import News
from supervisor.nodes import line
from supervisor.nodes.hub import Asked, Hub
from supervisor.nodes.lead import leader as module
from supervisor.nodes.lead.admission import Admission
from supervisor.nodes.lead.leader import Here, Leader
from supervisor.nodes.line import Line
from supervisor.nodes.roads import Reached, Roads
from supervisor.nodes.talk import messages as says
from supervisor.nodes.talk.probe import about_spec
from supervisor.run.events import EventLog
from supervisor.run.folder.stops import Stops
from supervisor.run.spec import Spec
from tests.support.links import HOST, LEASE, TOKEN, address
from tests.support.waiting import until
from trainer.rundir.codes import ExitCode
from trainer.rundir.layout import RunDir

SPEC = Spec("r", "m", ("x.py",), False, 1, "/", nnodes="2")
THERE = address(2)
M = TypeVar("M", bound=msgspec.Struct)


class Nodes:
    """A leader, and node 1 as its link sees it. `turn` does what both loops would do."""

    def __init__(self, leader: Leader, follower: Line, run: RunDir) -> None:
        self.leader, self.line, self.run = leader, follower, run
        self.attempt: int | None = None
        """Of which node 1 has processes."""
        self.ended = False
        self.calls = True
        """Whether it answers a new link with its hello."""
        self.heard: list[Any] = []
        self.down = list[says.Down]()
        """What the leader has said on the newest link."""

    def turn(self) -> None:
        for event in self.line.take():
            self.heard.append(event)
            match event:
                case line.Linked() if self.calls:
                    self.hello()
                case line.Welcomed():
                    self.down.clear()
                case line.Received(body):
                    self.down.append(says.down(body))
        self.leader.tick()

    def hello(self) -> None:
        places = Reached({"": (THERE, 1)})
        about = about_spec(SPEC)
        self.line.hello(says.encode(says.Hello(1, "b", THERE, 1, self.attempt, about, "who", places)))

    def until(self, what: Callable[[], Any]) -> None:
        until(lambda: self.turn() or what())

    def said(self, kind: type[M]) -> list[M]:
        """Those that were said on the newest link."""
        return [message for message in self.down if isinstance(message, kind)]

    def asked(self) -> None:
        """Node 1 has made a new link and said hello, while the leader does not look."""
        self.leader._hub.drop(1)
        until(lambda: any(isinstance(event, line.Linked) for event in self.line.take()))
        self.hello()
        hub = self.leader._hub
        until(lambda: any(isinstance(event, Asked) for event in list(hub._inbox._events)))

    def end(self, exit_code: ExitCode) -> list[Any]:
        """The run is over. Returns what the link of node 1 has told by then."""
        if not self.ended:
            self.leader.end(exit_code, "over", keep=False)
            until(lambda: self.told() and isinstance(self.heard[-1], line.Closed))
        self.ended = True
        return self.heard

    def told(self) -> list[Any]:
        self.heard += self.line.take()
        return self.heard

    def again(self) -> None:
        """The link of node 1 is closed, and it makes a new one."""
        self.heard.clear()
        self.leader._hub.drop(1)
        self.until(lambda: any(isinstance(event, line.Welcomed) for event in self.heard))


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Both are there, and have begun attempt 0."""
    run = RunDir(tmp_path / "run")
    for folder in (run.path, tmp_path / "own"):
        folder.mkdir()
    run.run_json.write_text("{}")
    monkeypatch.setattr(module, "start_warden", lambda *args: SimpleNamespace(pid=1))
    hub, roads, log = Hub((HOST, 0), TOKEN, LEASE), Roads(HOST, TOKEN), EventLog(run, "r")
    known = Membership.begin(0, "a", -1, {}, 0.0, LEASE)
    own: Any = SimpleNamespace(path=tmp_path, close=lambda: None)
    leader = Leader(hub, run, SPEC, log, Stops(), known, Here(HOST, own, roads))
    with contextlib.closing(Line((HOST, hub.port), HOST, TOKEN, tmp_path / "own")) as follower:
        made = Nodes(leader, follower, run)
        made.until(lambda: any(isinstance(event, line.Welcomed) for event in made.heard))
        leader.launch(0, (0, 1))
        made.attempt = 0
        yield made
        made.end(ExitCode.FINISHED)
    log.close()


def test_what_was_said_while_the_link_was_away(nodes: Nodes) -> None:
    """A member that is back knows the order to stop, and what is thought of the attempt; one that has nothing of it is
    told nothing of it."""
    nodes.calls = False
    nodes.leader._hub.drop(1)
    nodes.until(lambda: not nodes.leader.known.is_linked(1))
    nodes.leader.state(Mode.STOPPING, True, {})
    nodes.leader.send("TERM", Reach.RANKS)
    nodes.until(lambda: any(isinstance(event, line.Linked) for event in nodes.heard[1:]))
    nodes.hello()
    nodes.calls = True
    nodes.until(lambda: nodes.said(says.Signal))
    assert nodes.said(says.Signal) == [says.Signal(0, "TERM", Reach.RANKS.value)]
    assert nodes.said(says.State) == [says.State(0, True, True, {})]

    nodes.leader.launch(1, (0, 1))
    nodes.attempt = 1
    nodes.again()
    nodes.leader.state(Mode.RUNNING, False, {})
    nodes.until(lambda: nodes.said(says.State))
    assert nodes.said(says.State) == [says.State(1, False, False, {})] and nodes.said(says.Signal) == []
    nodes.attempt = None
    nodes.again()
    nodes.leader.ask_faults()
    nodes.leader._send(1, says.Dump(1))
    nodes.until(lambda: nodes.said(says.Dump))
    assert nodes.said(says.State) == nodes.said(says.Signal) == []


def test_a_new_link_beside_the_old(nodes: Nodes, tmp_path: Path) -> None:
    """The leader has not heard of the end of the old one. It calls the node anew, so that the road between them is
    known soon: what was told before the new link is void."""
    nodes.until(lambda: not nodes.leader._network._known.untried(time.monotonic()) - {(1, 0)})
    place = tmp_path / "second"
    place.mkdir()
    with contextlib.closing(Line((HOST, nodes.leader._hub.port), HOST, TOKEN, place)) as second:
        nodes.line, first = second, nodes.line
        nodes.heard.clear()
        nodes.until(lambda: any(isinstance(event, line.Welcomed) for event in nodes.heard))
        nodes.until(lambda: (0, 1) not in {road for road, _ in nodes.leader._network._known.waits})
        nodes.line = first


def test_who_is_back_when_the_run_ends(nodes: Nodes) -> None:
    """A node that has said hello while nobody looked is told the end, and does not wait for a leader."""
    nodes.asked()
    found = nodes.end(ExitCode.FINISHED)
    said = [says.down(event.body) for event in found if isinstance(event, line.Received)]

    assert said[-1] == says.Over(0, "over", False, -1)


def test_a_leader_that_was_followed_answers_nobody(nodes: Nodes) -> None:
    """Whoever has said hello to it meanwhile finds the other one."""
    nodes.asked()
    nodes.heard.clear()

    assert [type(event) for event in nodes.end(ExitCode.HELD)] == [line.Closed]


def test_a_rank_that_has_become_another_program(nodes: Nodes) -> None:
    """What its node has seen of it is known when its connection ends: a link that flaps loses no node."""
    nodes.line.send(says.encode(says.Seen(0, Observation(1.0), News(replaced=frozenset({1})))))
    nodes.until(lambda: nodes.leader.known.peers[1].replaced)
    nodes.leader.known = nodes.leader.known.leash(1, 0, 1, ended=True)
    nodes.again()

    assert not nodes.leader.known.lost


def test_a_disk_that_fails_at_a_hello(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for its welcome then has it as soon as the disk answers."""
    fails = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))] * 3
    failed = []
    real = Admission.welcome

    def welcome(self: Admission, node: int) -> bytes:
        if fails:
            failed.append(fails.pop())
            raise failed[-1]
        return real(self, node)

    monkeypatch.setattr(Admission, "welcome", welcome)
    tick = nodes.leader.tick

    def looked() -> None:
        with contextlib.suppress(OSError):
            tick()

    monkeypatch.setattr(nodes.leader, "tick", looked)
    nodes.again()

    assert len(failed) == 3
