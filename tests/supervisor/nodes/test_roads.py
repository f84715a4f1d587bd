"""The calls of nodes to each other, at addresses of this machine."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from supervisor.nodes import roads as module
from supervisor.nodes.interfaces import Elsewhere
from supervisor.nodes.roads import Roads, Tried
from supervisor.nodes.wire.dialing import Dialing
from supervisor.nodes.wire.link import Link
from supervisor.nodes.wire.listener import Listener
from tests.support.links import address
from tests.support.waiting import until

TOKEN = b"0123456789abcdef"
HERE, THERE = address(1), address(2)
NOWHERE = Elsewhere({})


@contextlib.contextmanager
def roads(address: str, token: bytes = TOKEN, clock: float = 0.0, others: Elsewhere = NOWHERE) -> Iterator[Roads]:
    """Its time of day is `clock` seconds ahead."""
    made = Roads(address, token, lambda: time.time() + clock, others)
    try:
        yield made
    finally:
        made.close()


def told(by: Roads, seconds: float = 60.0) -> Tried:
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
    with roads(HERE) as here, roads(THERE, clock=1000.0) as there, roads(THERE) as other:
        here.call({2: there.reached.places})
        first = told(here)
        here.call({2: there.reached.places}, anew=True)
        here.call({2: other.reached.places})
        second = told(here)

    # As well as one can tell: the call takes its time.
    assert (first.node, first.why) == (2, "") and 900 < first.ahead < 1100
    assert (second.node, second.why) == (2, "") and -100 < second.ahead < 100


def test_a_port_that_is_closed_and_then_open() -> None:
    """Nobody listens: that is told with the place and the system's own word. The call that is answered later, too."""
    with roads(HERE) as here:
        with roads(THERE) as there:
            port = there.reached.places[""][1]
        here.call({2: {"": (THERE, port)}})
        closed = told(here)
        with roads(THERE) as again:
            here.call({2: again.reached.places})
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
            port = stack.enter_context(roads(THERE, token)).reached.places[""][1]
        here.call({2: {"": (THERE, port)}})
        found = told(here)

    assert found.node == 2 and found.why.startswith(f"at {THERE}:{port}: ") and "token" in found.why


@pytest.mark.parametrize(("after", "why"), [(1.0, "large packets are lost on the way"), (0.5, "the other side closed")])
def test_who_hangs_up_on_a_call(after: float, why: str) -> None:
    """A side that hangs up once its time is over does so because nothing has come: the one that called tells that, also
    if it looks late. A side that hangs up before has done just that."""
    listener = Listener(THERE, 0, TOKEN)
    call = module._Call(2, "", (THERE, listener.port), False, 0.0)
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

    def dial(_: str, place: module.Place, now: float) -> Dialing:
        return Dialing(*place, TOKEN, now, HERE)

    links: list[Link] = []
    heard: list[bytes] = []
    until = time.monotonic() + 60
    while not heard:
        assert time.monotonic() < until
        assert call.tick(began, dial, time.time) is None
        links += listener.accept(began)
        # All is read: else the system says more than that it was closed.
        heard += [body for link in links for body in link.tick()]
    links[0].close()
    [(fd, _)] = call.waits()
    assert select.select([fd], [], [], 60)[0]
    return call.tick(looked, dial, time.time)


def test_nobody_is_called_any_more() -> None:
    """A node that is away is not called, and nothing of it is told."""
    with roads(HERE) as here:
        with roads(THERE) as there:
            here.call({2: there.reached.places})
            assert told(here).why == ""
            here.call({})
        assert select.select([here.fd], [], [], 0.5)[0] == []


def test_more_addresses_of_a_node() -> None:
    """Each is called, and told of, by the setting that has chosen it. One that the node does not have is named."""
    wanted = Elsewhere({"a=lo": "127.0.0.3", "a=eth7": "192.0.2.9"}, ("a=eth8",), frozenset({"a=lo", "a=eth7"}))
    with roads(HERE) as here, roads(THERE, others=wanted) as there:
        reached = there.reached
        assert reached.certain == {"a=lo"} and reached.closed == {
            "a=eth7": "192.0.2.9: Cannot assign requested address",
            "a=eth8": "no interface here has that name, and an address",
        }
        here.call({2: reached.places})
        found: list[Tried] = []
        until(lambda: found.extend(here.take()) or len(found) == 2)
        here.call({2: {**reached.places, "a=lo": ("127.0.0.3", 1)}})
        refused = told(here)

    assert {each.setting: each.why for each in found} == {"": "", "a=lo": ""}
    assert refused == Tried(2, "at 127.0.0.3:1: Connection refused", "a=lo")


def test_an_address_that_both_machines_have() -> None:
    """Whoever answers there is this machine itself."""
    with roads(HERE) as here, roads(THERE) as there:
        here.call({2: {"": ("192.0.2.9", 1), "a=lo": there.reached.places[""]}})
        found: list[Tried] = []
        until(lambda: found.extend(here.take()) or [each for each in found if each.setting])
        [own] = [each for each in found if each.setting]

    assert own == Tried(2, f"at {THERE}:{there.reached.places[''][1]}: this node has that address itself", "a=lo")
