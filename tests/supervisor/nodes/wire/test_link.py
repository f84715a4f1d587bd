"""Links over real sockets: who has the token gets one, nobody else gets a byte, and none ever blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.nodes.wire import greeting
from supervisor.nodes.wire.dialing import connect
from supervisor.nodes.wire.frames import Sealer
from supervisor.nodes.wire.link import Link, LinkLost
from supervisor.nodes.wire.listener import GREETING, HEARD, STRANGERS, Listener
from tests.support.links import address
from tests.support.waiting import until

TOKEN = b"the token of this run"
HOST = address()


@pytest.fixture
def server() -> Iterator[Listener]:
    with contextlib.closing(Listener(HOST, 0, TOKEN)) as made:
        yield made


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def pair(server: Listener, stack: contextlib.ExitStack) -> tuple[Link, Link]:
    """(the caller's, the listener's) end of a link."""
    dialing = connect(HOST, server.port, TOKEN, 0.0)
    stack.callback(dialing.close)
    mine, theirs = list[Link](), list[Link]()

    def look() -> bool:
        if not mine and (made := dialing.tick(0.0)) is not None:
            mine.append(made)
        theirs.extend(server.accept(0.0))
        return bool(mine and theirs)

    until(look)
    for each in (*mine, *theirs):
        stack.callback(each.close)
    return mine[0], theirs[0]


def received(end: Link, count: int) -> list[bytes]:
    found: list[bytes] = []

    def look() -> bool:
        found.extend(end.tick())
        return len(found) >= count

    until(look)
    return found


def raw(server: Listener, stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(contextlib.closing(socket.create_connection((HOST, server.port), timeout=60)))


def test_both_ways(server: Listener, closing: contextlib.ExitStack) -> None:
    """Bodies come whole and in order, in both directions; what came before the end is told before it."""
    mine, theirs = pair(server, closing)
    bodies = [b"", b"x", os.urandom(300_000), *(str(n).encode() for n in range(100))]
    for body in bodies:
        mine.send(body)
        theirs.send(body[::-1])
    there, back = list[bytes](), list[bytes]()
    until(lambda: there.extend(theirs.tick()) or back.extend(mine.tick()) or len(there + back) >= 2 * len(bodies))
    assert there == bodies and back == [body[::-1] for body in bodies]
    mine.send(b"last")
    mine.close()
    assert received(theirs, 1) == [b"last"]
    with pytest.raises(LinkLost, match="closed"):
        until(lambda: theirs.tick())
    assert theirs.fds() == [] and mine.fds() == []


def test_the_last_word_of_who_is_gone(server: Listener, closing: contextlib.ExitStack) -> None:
    """It is told also to one that was about to say something itself, twice, before it has looked."""
    mine, theirs = pair(server, closing)
    theirs.send(b"over")
    theirs.close()
    until(lambda: (mine.send(b"still at work"), mine._lost)[1])
    assert mine.tick() == [b"over"] and not mine.finished
    with pytest.raises(LinkLost):
        mine.tick()


def received_while(sender: Link, receiver: Link, count: int) -> list[bytes]:
    """What the receiver gets while both look."""
    found: list[bytes] = []

    def look() -> bool:
        sender.tick()
        found.extend(receiver.tick())
        return len(found) >= count

    until(look)
    return found


def test_a_link_sleeps_in_poll(server: Listener, closing: contextlib.ExitStack) -> None:
    """Its descriptor is readable when a body has come, and when its end has not been told; else it is not."""
    mine, theirs = pair(server, closing)
    poll = select.poll()
    poll.register(theirs.fds()[0], select.POLLIN)
    assert not poll.poll(20)
    mine.send(b"news")
    assert poll.poll(60_000) and theirs.tick() == [b"news"] and not poll.poll(20)
    mine.socket.sendall(b"\0\0\0\1" + bytes(17))
    assert poll.poll(60_000)
    with pytest.raises(LinkLost, match="not from the other side"):
        theirs.tick()


def test_who_does_not_read_is_not_served(server: Listener, closing: contextlib.ExitStack) -> None:
    """send() never blocks; what waits is bounded, and then the link is over."""
    mine, _ = pair(server, closing)
    with pytest.raises(LinkLost, match="does not read"):
        for _ in range(200):
            mine.send(bytes(1 << 20))
            mine.tick()
    assert not mine.wants_write and len(mine._unsent) == 0


def test_a_full_socket_empties_later(server: Listener, closing: contextlib.ExitStack) -> None:
    """What the socket does not take at once is sent when the other side reads."""
    mine, theirs = pair(server, closing)
    for _ in range(6):
        mine.send(bytes(1 << 20))
    assert mine.wants_write
    assert len(received_while(mine, theirs, 6)) == 6
    assert not mine.wants_write


def test_another_token(server: Listener, closing: contextlib.ExitStack) -> None:
    """Is told so, and leaves nothing at the listener."""
    dialing = connect(HOST, server.port, b"another token", 0.0)
    closing.callback(dialing.close)
    with pytest.raises(LinkLost, match="token"):
        until(lambda: (server.accept(0.0), dialing.tick(0.0))[1])
    assert len(server.fds()) == 1


def test_a_listener_with_another_token(closing: contextlib.ExitStack) -> None:
    """The caller proves itself and gets a wrong proof: it says nothing more."""
    fake = closing.enter_context(contextlib.closing(socket.create_server((HOST, 0))))
    dialing = connect(HOST, fake.getsockname()[1], TOKEN, 0.0)
    closing.callback(dialing.close)
    theirs = closing.enter_context(contextlib.closing(fake.accept()[0]))
    until(lambda: dialing.tick(0.0) or dialing.connected)
    assert len(theirs.recv(1000)) == greeting.CALL
    theirs.sendall(os.urandom(greeting.ANSWER))
    with pytest.raises(LinkLost, match="token"):
        until(lambda: dialing.tick(0.0))
    assert theirs.recv(1000) == b""


def test_nobody_there(closing: contextlib.ExitStack) -> None:
    """A port without a listener, an address that is not ours, and one who never answers: one line each."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkLost, match="refused"):
        until(lambda: connect(HOST, port, TOKEN, 0.0).tick(0.0))
    with pytest.raises(LinkLost):
        connect(HOST, port, TOKEN, 0.0, local="203.0.113.9")
    silent = closing.enter_context(contextlib.closing(socket.create_server((HOST, 0))))
    dialing = connect(HOST, silent.getsockname()[1], TOKEN, 10.0)
    until(lambda: dialing.tick(10.0) or dialing.connected)
    assert dialing.tick(10.0 + GREETING - 0.1) is None
    with pytest.raises(LinkLost, match="within 2 s"):
        dialing.tick(10.0 + GREETING)
    assert dialing.fds() == []


def test_a_caller_gives_up_first(server: Listener, closing: contextlib.ExitStack) -> None:
    """Its time is over before the one that it calls hangs up: so it says what it has waited for."""
    dialing = connect(HOST, server.port, TOKEN, 10.0)
    closing.callback(dialing.close)
    until(lambda: server.accept(10.0) or server.deadline())
    assert server.deadline() == 10.0 + HEARD > dialing.until + 1


@pytest.mark.parametrize(("late", "why"), [(GREETING, "within 2 s"), (0.0, "it closed the connection")])
def test_who_hangs_up_on_a_caller(closing: contextlib.ExitStack, late: float, why: str) -> None:
    """A caller that looks so late that it finds the connection closed blames nobody: whoever closed it may have the
    token. One that looks in time was not wanted."""
    silent = closing.enter_context(contextlib.closing(socket.create_server((HOST, 0))))
    dialing = connect(HOST, silent.getsockname()[1], TOKEN, 10.0)
    until(lambda: dialing.tick(10.0) or dialing.connected)
    called, _ = silent.accept()
    # All of it is read, so it ends without a reset.
    assert called.recv(greeting.CALL, socket.MSG_WAITALL)
    called.close()
    assert select.select(dialing.fds(), [], [], 20)[0]
    with pytest.raises(LinkLost, match=why):
        dialing.tick(10.0 + late)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.binary(min_size=1, max_size=120) | st.binary(max_size=60).map(lambda tail: b"SPV1" + tail))
def test_a_stranger_gets_no_byte(server: Listener, said: bytes) -> None:
    """Whatever it says, it is closed without an answer as soon as it cannot be one of us, else after four seconds."""
    with contextlib.ExitStack() as stack:
        stranger = raw(server, stack)
        stranger.sendall(said)
        poll = select.poll()
        poll.register(server.fds()[0], select.POLLIN)
        assert poll.poll(60_000)
        assert server.accept(0.0) == [] and len(server.fds()) <= 2
        # Four seconds later it is gone, whatever it has said.
        assert server.accept(HEARD) == [] and len(server.fds()) == 1
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""


def test_a_recorded_caller_gets_no_link(server: Listener, closing: contextlib.ExitStack) -> None:
    """All that a caller has said, said again: the listener's nonce is another one, so its first frame is forged."""
    nonce = bytes(greeting.NONCE)
    first = raw(server, closing)
    first.sendall(greeting.call(TOKEN, nonce))
    until(lambda: server.accept(0.0) or select.select([first], [], [], 0)[0])
    keys = greeting.answered(TOKEN, nonce, first.recv(greeting.ANSWER))
    frame = Sealer(keys.caller).seal(b"")
    first.sendall(frame)
    made: list[Link] = []
    until(lambda: made.extend(server.accept(0.0)) or made)
    closing.callback(made[0].close)

    again = raw(server, closing)
    again.sendall(greeting.call(TOKEN, nonce) + frame)
    until(lambda: server.accept(0.0) or select.select([again], [], [], 0)[0])
    assert len(again.recv(1000)) == greeting.ANSWER
    until(lambda: server.accept(0.0) == [] and len(server.fds()) == 1)


def test_slow_strangers_keep_nobody_out(server: Listener, closing: contextlib.ExitStack) -> None:
    """A hundred of them hold their connections open with a byte each: the oldest go, and one of us is let in."""
    strangers = [raw(server, closing) for _ in range(STRANGERS + 36)]
    for stranger in strangers:
        stranger.sendall(b"S")
    until(lambda: server.accept(0.0) == [] and select.select([strangers[35]], [], [], 0)[0])
    assert strangers[0].recv(1) == b"" and len(server.fds()) == STRANGERS + 1
    mine, theirs = pair(server, closing)
    mine.send(b"hello")
    assert received(theirs, 1) == [b"hello"]


def test_bytes_after_the_greeting_are_the_links(server: Listener, closing: contextlib.ExitStack) -> None:
    """A caller that does not wait loses nothing."""
    nonce = bytes(greeting.NONCE)
    caller = raw(server, closing)
    caller.sendall(greeting.call(TOKEN, nonce))
    until(lambda: server.accept(0.0) or select.select([caller], [], [], 0)[0])
    sealer = Sealer(greeting.answered(TOKEN, nonce, caller.recv(greeting.ANSWER)).caller)
    caller.sendall(sealer.seal(b"") + sealer.seal(b"at once") + sealer.seal(b"and more"))
    made: list[Link] = []
    until(lambda: made.extend(server.accept(0.0)) or made)
    closing.callback(made[0].close)
    assert received(made[0], 2) == [b"at once", b"and more"]


def test_both_nonces_make_the_keys() -> None:
    """Neither side alone chooses them, and the directions differ."""
    made = {greeting.keys(token, a, b) for token in (TOKEN, b"t") for a in (b"1" * 16, b"2" * 16) for b in (b"3" * 16,)}
    made |= {greeting.keys(TOKEN, b"1" * 16, b"4" * 16)}
    assert len(made) == 5 and all(each.caller != each.listener for each in made)


def test_whose_machine_has_lost_its_power(server: Listener, closing: contextlib.ExitStack) -> None:
    """Closes nothing. So the kernel asks about a connection on which nothing comes: that of a rank would be held for
    ever."""
    _, theirs = pair(server, closing)
    assert theirs.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    asked = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    idle, every, times = (theirs.socket.getsockopt(socket.IPPROTO_TCP, each) for each in asked)
    assert idle + every * times <= 120


def test_no_descriptor_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call has failed, in the system's words, as any other one does."""

    def none_left(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(LinkLost, match="Too many open files"):
        connect(HOST, 1, TOKEN, 0.0)
