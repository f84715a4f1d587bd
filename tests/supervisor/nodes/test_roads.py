"""The calls of nodes to each other, at addresses of this machine."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from supervisor.nodes import roads as module
from supervisor.nodes.roads import Roads, Tried
from supervisor.nodes.wire.dialing import Dialing
from supervisor.nodes.wire.link import Link
from supervisor.nodes.wire.listener import Listener

TOKEN = b"0123456789abcdef"
HERE, THERE = "127.0.0.1", "127.0.0.2"


@contextlib.contextmanager
def roads(address: str, token: bytes = TOKEN, clock: float = 0.0) -> Iterator[Roads]:
    """Its time of day is `clock` seconds ahead."""
    made = Roads(address, token, lambda: time.time() + clock)
    try:
        yield made
    finally:
        made.close()


def told(by: Roads, seconds: float = 10.0) -> Tried:
    """The next word of it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        select.select([by.fd], [], [], until - time.monotonic())
        if found := by.take():
            assert len(found) == 1
            return found[0]
    raise AssertionError("nothing was told")


def test_a_node_that_answers() -> None:
    """It is told once, with the time of day there; it is told again if it is called anew elsewhere."""
    with roads(HERE) as here, roads(THERE, clock=100.0) as there, roads(THERE) as other:
        here.call({2: (THERE, there.port)})
        first = told(here)
        here.call({2: (THERE, there.port)}, anew=True)
        here.call({2: (THERE, other.port)})
        second = told(here)

    assert (first.node, first.why, round(first.ahead)) == (2, "", 100)
    assert (second.node, second.why, round(second.ahead)) == (2, "", 0)


def test_a_port_that_is_closed_and_then_open() -> None:
    """Nobody listens: that is told with the place and the system's own word. The call that is answered later, too."""
    with roads(HERE) as here:
        with roads(THERE) as there:
            port = there.port
        here.call({2: (THERE, port)})
        closed = told(here)
        with roads(THERE) as again:
            here.call({2: (THERE, again.port)})
            opened = told(here)

    assert closed == Tried(2, f"at {THERE}:{port}: Connection refused")
    assert opened.why == ""


@pytest.mark.parametrize("token", [b"another token....", None])
def test_somebody_else_at_the_port(token: bytes | None) -> None:
    """A listener without the token, or one that says nothing, is no node of this run."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(roads(HERE))
        if token is None:
            port = stack.enter_context(socket.create_server((THERE, 0))).getsockname()[1]
        else:
            port = stack.enter_context(roads(THERE, token)).port
        here.call({2: (THERE, port)})
        found = told(here)

    assert found.node == 2 and found.why.startswith(f"at {THERE}:{port}: ") and "token" in found.why


@pytest.mark.parametrize(("after", "why"), [(1.0, "large packets are lost on the way"), (0.5, "the other side closed")])
def test_who_hangs_up_on_a_call(after: float, why: str) -> None:
    """A side that hangs up once its time is over does so because nothing has come: the one that called tells that, also
    if it looks late. A side that hangs up before has done just that."""
    listener = Listener(THERE, 0, TOKEN)
    call = module._Call(2, (THERE, listener.port), 0.0)
    try:
        found = [_hung_up_on(call, listener, call.due, call.due + after * module.ANSWER) for _ in range(module.TRIES)]
    finally:
        call.close()
        listener.close()

    assert found[:-1] == [None] * (module.TRIES - 1)
    assert found[-1] is not None and why in found[-1].why


def _hung_up_on(call: module._Call, listener: Listener, began: float, looked: float) -> Tried | None:
    """What is told by a call that begins at one time, is closed by the other side without an answer, and is looked at
    again at another time."""

    def dial(place: module.Place, now: float) -> Dialing:
        return Dialing(*place, TOKEN, now, HERE)

    links: list[Link] = []
    heard: list[bytes] = []
    until = time.monotonic() + 20
    while not heard:
        assert time.monotonic() < until
        assert call.tick(began, dial, time.time) is None
        links += listener.accept(began)
        # All is read: else the system says more than that it was closed.
        heard += [body for link in links for body in link.tick()]
    links[0].close()
    [(fd, _)] = call.waits()
    assert select.select([fd], [], [], 20)[0]
    return call.tick(looked, dial, time.time)


def test_nobody_is_called_any_more() -> None:
    """A node that is away is not called, and nothing of it is told."""
    with roads(HERE) as here:
        with roads(THERE) as there:
            here.call({2: (THERE, there.port)})
            assert told(here).why == ""
            here.call({})
        assert select.select([here.fd], [], [], 0.5)[0] == []
