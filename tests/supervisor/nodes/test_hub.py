"""A leader's hub and its followers' lines, over real sockets: who is admitted has a lease, and nobody waits."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from supervisor.nodes import hub, line
from supervisor.nodes.hub import Hub
from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.nodes.line import Line
from supervisor.nodes.wire import beats
from tests.support.links import HOST, LEASE, TOKEN, Loop, admitted, linked
from tests.support.supervised import ROOT
from tests.support.waiting import until


def test_messages(leader: Hub, follower: Line) -> None:
    """Go both ways in order once the follower is admitted, and not before."""
    follower.send(b"too soon")
    theirs, mine, link = admitted(leader, follower)
    for n in range(50):
        follower.send(b"up %d" % n)
        leader.send(1, b"down %d" % n)
    leader.send(2, b"to nobody")
    assert [theirs.until(hub.Received).body for _ in range(50)] == [b"up %d" % n for n in range(50)]
    assert [mine.until(line.Received).body for _ in range(50)] == [b"down %d" % n for n in range(50)]
    big = os.urandom(3 << 20)
    leader.send(1, big)
    follower.send(big)
    assert mine.until(line.Received).body == big
    assert theirs.until(hub.Received) == hub.Received(1, link, big)


def renewed(word: LeaseWord) -> None:
    """The end of the lease moves on, again and again."""
    ends = [word.read().until]

    def moved() -> bool:
        if (end := word.read().until) > ends[-1]:
            ends.append(end)
        return len(ends) > 5

    until(moved)


def test_leases_are_renewed_without_the_loops(leader: Hub, follower: Line, tmp_path: Path) -> None:
    """Both loops wait for a disk: the word in memory goes on, and so does what is heard."""
    _, mine, link = admitted(leader, follower)
    follower.arm()
    follower.beat(b"at step 7")
    word = LeaseWord(tmp_path, writes=False)
    renewed(word)
    until(lambda: leader.heard()[1].body == b"at step 7")
    until(lambda: leader.heard()[1].gap > 0.1)
    until(lambda: leader.heard()[1].doubt < 0.05)
    # The word first: both go on meanwhile.
    ends = word.read().until
    heard = leader.heard()[1]
    assert heard.link == link and boottime() - heard.at < LEASE
    assert heard.leased_until >= ends, "a lease ends at the follower first"
    assert abs(heard.offset) <= heard.doubt and heard.gap < LEASE
    assert word.read().armed and not word.read().fenced(boottime())
    mine.none(line.Fenced, 0.0)


def test_the_fence_is_sticky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that has run out with ranks is told once, and is not renewed by a new leader until they are gone."""
    asleep = [0.0]
    """Seconds that this node has slept: its clock counts them."""

    def clock() -> float:
        return boottime() + asleep[0]

    monkeypatch.setattr(line, "boottime", clock)
    first = Hub((HOST, 0), TOKEN, LEASE)
    with contextlib.closing(Line((HOST, first.port), HOST, TOKEN, tmp_path)) as follower:
        _, mine, _ = admitted(first, follower)
        follower.arm()
        first.close()
        mine.until(line.Closed)
        mine.none(line.Fenced)
        assert follower.leased
        asleep[0] = 2 * LEASE
        mine.until(line.Fenced)
        assert not follower.leased
        with contextlib.closing(Hub((HOST, first.port), TOKEN, LEASE)) as second:
            admitted(second, follower)
            word = LeaseWord(tmp_path, writes=False)
            until(lambda: 1 in second.heard() and second.heard()[1].gap)
            assert word.read().fenced(clock())
            follower.clear()
            until(lambda: follower.leased)
            follower.arm()
            assert not word.read().fenced(clock())


def test_a_welcome_that_takes_long(leader: Hub, follower: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader was busy for longer than a lease: its answer counts from when it came, and the link stays."""
    busy = [0.0]
    monkeypatch.setattr(line, "boottime", lambda: boottime() + busy[0])
    monkeypatch.setattr(line, "_UNANSWERED", 10 * LEASE)
    theirs, mine = Loop(leader), Loop(follower)
    mine.until(line.Linked)
    follower.hello(b"it is me")
    asked = theirs.until(hub.Asked)
    busy[0] = 2 * LEASE
    leader.admit(asked.link, 1, b"welcome")
    mine.until(line.Welcomed)
    until(lambda: follower.leased)
    mine.none(line.Closed)
    assert leader.holds(asked.link)


def test_a_node_that_is_dropped_comes_back(leader: Hub, follower: Line) -> None:
    """On a new link with a higher number; the old one's end is told to both."""
    theirs, mine, link = admitted(leader, follower)
    leader.drop(1)
    closed = theirs.until(hub.Closed)
    assert (closed.node, closed.link) == (1, link)
    mine.until(line.Closed)
    again = admitted(leader, follower)[2]
    assert again > link


def test_a_newer_link_replaces_the_old(leader: Hub, follower: Line, tmp_path: Path) -> None:
    """Of the same node: what the old one still says is not heard."""
    theirs, mine, link = admitted(leader, follower)
    other = tmp_path / "other"
    other.mkdir()
    with contextlib.closing(Line((HOST, leader.port), HOST, TOKEN, other)) as second:
        admitted(leader, second)
        assert theirs.until(hub.Closed).link == link
        mine.until(line.Closed)


def test_a_refusal(leader: Hub, follower: Line) -> None:
    """Is told in words, and nobody calls again."""
    theirs, mine = Loop(leader), Loop(follower)
    mine.until(line.Linked)
    follower.hello(b"old version")
    leader.refuse(theirs.until(hub.Asked).link, b"another version")
    assert mine.until(line.Refused).body == b"another version"
    leader.drop(1)
    mine.none(line.Linked, 0.3)
    assert not follower.leased


def test_the_last_message_arrives(tmp_path: Path) -> None:
    """What was sent before the end is read, though the other side still talks."""
    leader = Hub((HOST, 0), TOKEN, LEASE)
    with contextlib.closing(Line((HOST, leader.port), HOST, TOKEN, tmp_path)) as follower:
        _, mine, _ = admitted(leader, follower)
        stop = threading.Event()

        def talk() -> None:
            while not stop.wait(0.0005):
                follower.send(b"x" * 1000)

        talking = threading.Thread(target=talk)
        talking.start()
        leader.send(1, b"over")
        leader.close()
        stop.set()
        talking.join()
        assert mine.until(line.Received).body == b"over"


def test_automatic_leases(tmp_path: Path) -> None:
    """Begin long."""
    with contextlib.closing(Hub((HOST, 0), TOKEN, None)) as leader:
        assert leader.seconds == 3.0
        with contextlib.closing(Line((HOST, leader.port), HOST, TOKEN, tmp_path)) as follower:
            began = boottime()
            admitted(leader, follower)
            assert began < LeaseWord(tmp_path, writes=False).read().until - 3.0 < boottime()


def test_the_leaders_own_lease(tmp_path: Path) -> None:
    """Its word is renewed like the others', and ends with it."""
    with contextlib.closing(Hub((HOST, 0), TOKEN, LEASE, tmp_path)) as leader:
        word = LeaseWord(tmp_path, writes=False)
        assert not word.read().armed
        leader.arm()
        renewed(word)
        assert word.read().armed and not word.read().fenced(boottime())
        leader.clear()
        assert not word.read().armed and not word.over
    assert word.over


def test_strangers_and_nonsense(leader: Hub, follower: Line, tmp_path: Path) -> None:
    """Change nothing for the others: not bytes without the token, nor messages that mean nothing, with it."""
    _, mine, _ = admitted(leader, follower)
    follower.arm()
    strangers = [socket.create_connection((HOST, leader.port)) for _ in range(70)]
    for n, stranger in enumerate(strangers):
        with contextlib.suppress(OSError):
            stranger.sendall(os.urandom(n) if n % 2 else b"SPV1"[: n % 5])
    for body in (beats.BEAT, beats.BEAT + b"1", beats.LEASH, b"", b"?", beats.MESSAGE + b"x", beats.LEASE):
        made = linked(leader)
        made.send(body)
        made.close()
    renewed(LeaseWord(tmp_path, writes=False))
    mine.none(line.Fenced)
    mine.none(line.Closed, 0.0)
    for stranger in strangers:
        stranger.close()


def test_nothing_is_left(tmp_path: Path) -> None:
    """No descriptor, no thread and no socket's name of a hub and a line that are closed."""
    # What others have left may be collected meanwhile: only what is new counts.
    gc.collect()
    files, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        leader = Hub((HOST, 0), TOKEN, LEASE, None)
        follower = Line((HOST, leader.port), HOST, TOKEN, tmp_path)
        admitted(leader, follower)
        follower.close()
        leader.close()
    assert set(os.listdir("/proc/self/fd")) <= files and set(threading.enumerate()) <= threads
    assert not (tmp_path / "leash").exists()


SILENT = """
import sys, time
from supervisor.nodes import hub
made = hub.Hub((sys.argv[1], 0), sys.argv[2].encode(), 0.3)
print(made.port, flush=True)
while True:
    for event in made.take():
        if isinstance(event, hub.Asked):
            made.admit(event.link, 1, b"welcome")
    time.sleep(0.01)
"""


def test_a_leader_that_says_nothing_any_more(tmp_path: Path) -> None:
    """A machine without power closes no connection. The link is given up, and the next leader found."""
    command = [sys.executable, "-c", SILENT, HOST, TOKEN.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as leads:
        assert leads.stdout is not None
        port = int(leads.stdout.readline())
        with contextlib.closing(Line((HOST, port), HOST, TOKEN, tmp_path)) as follower:
            mine = Loop(follower)
            mine.until(line.Linked)
            follower.hello(b"it is me")
            mine.until(line.Welcomed)
            leads.send_signal(signal.SIGSTOP)
            assert mine.until(line.Closed).why == "the leader is silent"
            leads.kill()
            leads.wait()
            with contextlib.closing(Hub((HOST, port), TOKEN, LEASE)) as second:
                admitted(second, follower)


def test_nobody_leads_yet(tmp_path: Path) -> None:
    """A follower calls until somebody answers, and says why nobody does."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with contextlib.closing(Line((HOST, port), HOST, TOKEN, tmp_path)) as follower:
        until(lambda: "refused" in follower.trouble)
        with pytest.raises(ValueError, match="no lease"):
            follower.arm()
        with contextlib.closing(Hub((HOST, port), TOKEN, LEASE)) as leader:
            admitted(leader, follower)
