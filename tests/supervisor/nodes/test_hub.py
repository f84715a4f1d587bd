"""A leader's hub and its followers' lines, over real sockets: who is admitted has a lease, and nobody waits."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.nodes import hub, line
from supervisor.nodes.hub import Hub
from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.nodes.line import Line
from supervisor.nodes.wire import beats
from supervisor.nodes.wire.beats import Bond
from supervisor.nodes.wire.dialing import connect
from supervisor.nodes.wire.link import Link
from tests.support.links import HOST, LEASE, TOKEN, Loop, admitted, eventually
from tests.support.supervised import ROOT


@pytest.fixture
def leader() -> Iterator[Hub]:
    with contextlib.closing(Hub((HOST, 0), TOKEN, LEASE)) as made:
        yield made


@pytest.fixture
def follower(leader: Hub, tmp_path: Path) -> Iterator[Line]:
    with contextlib.closing(Line((HOST, leader.port), HOST, TOKEN, tmp_path)) as made:
        yield made


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


def test_leases_are_renewed_without_the_loops(leader: Hub, follower: Line, tmp_path: Path) -> None:
    """Both loops wait for a disk, for longer than a lease: the word in memory goes on, and so does what is heard."""
    _, mine, link = admitted(leader, follower)
    follower.arm()
    follower.beat(b"at step 7")
    word = LeaseWord(tmp_path, writes=False)
    end = time.monotonic() + 2 * LEASE
    while time.monotonic() < end:
        assert not word.read().fenced(boottime())
        time.sleep(0.01)
    heard = leader.heard()[1]
    assert heard.link == link and heard.body == b"at step 7" and boottime() - heard.at < LEASE
    assert heard.leased_until >= word.read().until, "a lease ends at the follower first"
    assert abs(heard.offset) <= heard.doubt < 0.05 and 0.1 < heard.gap < LEASE
    mine.none(line.Fenced, 0.0)


def test_the_fence_is_sticky(tmp_path: Path) -> None:
    """A lease that has run out with ranks is told once, and is not renewed by a new leader until they are gone."""
    first = Hub((HOST, 0), TOKEN, LEASE)
    with contextlib.closing(Line((HOST, first.port), HOST, TOKEN, tmp_path)) as follower:
        _, mine, _ = admitted(first, follower)
        follower.arm()
        first.close()
        ended = boottime()
        mine.until(line.Closed)
        mine.until(line.Fenced)
        assert boottime() - ended < LEASE + 0.2 and not follower.leased
        with contextlib.closing(Hub((HOST, first.port), TOKEN, LEASE)) as second:
            admitted(second, follower)
            word = LeaseWord(tmp_path, writes=False)
            eventually(lambda: 1 in second.heard() and second.heard()[1].gap)
            assert word.read().fenced(boottime())
            follower.clear()
            eventually(lambda: follower.leased)
            follower.arm()
            assert not word.read().fenced(boottime())


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
            admitted(leader, follower)
            assert 2.5 < LeaseWord(tmp_path, writes=False).read().until - boottime() <= 3.0


def test_the_leaders_own_lease(tmp_path: Path) -> None:
    """Its word is renewed like the others', and ends with it."""
    with contextlib.closing(Hub((HOST, 0), TOKEN, LEASE, tmp_path)) as leader:
        word = LeaseWord(tmp_path, writes=False)
        assert not word.read().armed
        leader.arm()
        end = time.monotonic() + 2 * LEASE
        while time.monotonic() < end:
            assert word.read().armed and not word.read().fenced(boottime())
            time.sleep(0.01)
        leader.clear()
        assert not word.read().armed and not word.over
    assert word.over


RANK = """
import os, sys, time
from pathlib import Path
from trainer.rank import leash
assert leash.hold(Path(sys.argv[1]), 3, int(sys.argv[2]))
child = os.fork()
if child:
    os.write(1, b"%d\\n" % child)
time.sleep(60)
"""


@contextlib.contextmanager
def rank(follower: Line, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """A rank that has its leash, and a child that outlives it."""
    command = [sys.executable, "-c", RANK, str(follower.leash), str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_leashes(leader: Hub, follower: Line) -> None:
    """The end of a rank is told at once, whatever its children do, and also when its supervisor's link is closed."""
    theirs, _, _ = admitted(leader, follower)
    follower.node = 1
    with rank(follower, 2) as first, rank(follower, 3) as second:
        assert {theirs.until(hub.Leash) for _ in (2, 3)} == {hub.Leash(1, 3, n, ended=False) for n in (2, 3)}
        first.kill()
        killed = time.monotonic()
        assert theirs.until(hub.Leash) == hub.Leash(1, 3, 2, ended=True)
        assert time.monotonic() - killed < 1.0
        leader.drop(1)
        theirs.none(hub.Leash)
        second.kill()
        assert theirs.until(hub.Leash) == hub.Leash(1, 3, 3, ended=True)


def test_a_reset_is_no_proof(leader: Hub) -> None:
    """Only the end of a process ends its connection in order."""
    dialing = connect(HOST, leader.port, TOKEN, time.monotonic())
    made: list[Link] = []
    eventually(lambda: made.extend(filter(None, [dialing.tick(time.monotonic())])) or made)
    made[0].send(Bond(1, 3, 2).packed())
    theirs = Loop(leader)
    theirs.until(hub.Leash)
    made[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made[0].close()
    theirs.none(hub.Leash, 0.2)


def test_strangers_and_nonsense(leader: Hub, follower: Line) -> None:
    """Change nothing for the others: not bytes without the token, nor messages that mean nothing, with it."""
    _, mine, _ = admitted(leader, follower)
    follower.arm()
    strangers = [socket.create_connection((HOST, leader.port)) for _ in range(70)]
    for n, stranger in enumerate(strangers):
        with contextlib.suppress(OSError):
            stranger.sendall(os.urandom(n) if n % 2 else b"SPV1"[: n % 5])
    for body in (beats.BEAT, beats.BEAT + b"1", beats.LEASH, b"", b"?", beats.MESSAGE + b"x", beats.LEASE):
        dialing = connect(HOST, leader.port, TOKEN, time.monotonic())
        made: list[Link] = []
        eventually(lambda d=dialing, m=made: m.extend(filter(None, [d.tick(time.monotonic())])) or m)  # type: ignore[misc]
        made[0].send(body)
        made[0].close()
    mine.none(line.Fenced, 2 * LEASE)
    mine.none(line.Closed, 0.0)
    for stranger in strangers:
        stranger.close()


def test_nothing_is_left(tmp_path: Path) -> None:
    """No descriptor, no thread and no socket's name of a hub and a line that are closed."""
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        leader = Hub((HOST, 0), TOKEN, LEASE, None)
        follower = Line((HOST, leader.port), HOST, TOKEN, tmp_path)
        admitted(leader, follower)
        follower.close()
        leader.close()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert not (tmp_path / "leash").exists()


SILENT = """
import sys, time
from supervisor.nodes import hub
made = hub.Hub(("127.0.0.1", int(sys.argv[1])), sys.argv[2].encode(), 0.3)
print(made.port, flush=True)
while True:
    for event in made.take():
        if isinstance(event, hub.Asked):
            made.admit(event.link, 1, b"welcome")
    time.sleep(0.01)
"""


def test_a_leader_that_says_nothing_any_more(tmp_path: Path) -> None:
    """A machine without power closes no connection. The link is given up, and the next leader found."""
    command = [sys.executable, "-c", SILENT, "0", TOKEN.decode()]
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
        eventually(lambda: "refused" in follower.trouble)
        with pytest.raises(ValueError, match="no lease"):
            follower.arm()
        with contextlib.closing(Hub((HOST, port), TOKEN, LEASE)) as leader:
            admitted(leader, follower)
