"""Who is admitted under a number that another supervisor had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.core.nodes.membership import Membership
from supervisor.nodes import hub as links
from supervisor.nodes.lead.admission import Admission
from supervisor.nodes.roads import Reached
from supervisor.nodes.talk import messages as says
from supervisor.nodes.talk.probe import about_spec
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

SPEC = Spec("r", "m", ("x.py",), False, 1, "/", nnodes="2")


def guest(who: str, host: str, attempt: int | None = None) -> bytes:
    about = about_spec(SPEC)
    return says.encode(says.Hello(1, host, host, 1, attempt, about, who, Reached({})))


class Door:
    """A hub on which everybody stays who has come."""

    def __init__(self) -> None:
        self.refused: list[int] = []

    def holds(self, link: int) -> bool:
        return True

    def refuse(self, link: int, body: bytes) -> None:
        self.refused.append(link)


@pytest.mark.parametrize(("place", "waits"), [("elsewhere", True), ("there", False)])
def test_the_number_of_a_node_whose_link_is_away(tmp_path: Path, place: str, waits: bool) -> None:
    """Its ranks may run as long as its lease: another machine waits for that, or is refused if it is back. At its own
    address nothing runs any more."""
    run, door = RunDir(tmp_path), Door()
    admission = Admission(door, run, SPEC)  # type: ignore[arg-type]
    known = Membership.begin(0, "a", -1, {}, 0.0, 3.0)
    admitted = list[int]()

    def look(now: float) -> list[Any]:
        def admit(each: Any, node: int) -> Membership:
            nonlocal known
            admitted.append(each.link)
            known = known.joined(node, each.host, each.link, each.hello.attempt, now, 3.0)
            return known

        return list(admission.look(known, now, admit))

    def hello(link: int, body: bytes, now: float) -> None:
        assert admission.hello(links.Asked(link, body, ""), now) is None

    hello(1, guest("first", "there"), 10.0)
    look(10.0)
    known = known.launched(0, (0, 1), {0: 1, 1: 1}).closed(1, 1)
    hello(2, guest("second", place), 10.1)
    look(10.1)
    assert (admitted == [1]) is waits and known.may_run(1) is waits
    if waits:
        back = known
        hello(3, guest("first", "there", 0), 10.3)
        look(10.3)
        known = known.heard(1, 3, 11.0, 14.0)
        assert [refused.node for refused in look(11.0)] == [1] and door.refused == [2] and admitted == [1, 3]
        known = back
        hello(4, guest("second", place), 13.0)
        look(13.0)
        assert admitted == [1, 3]
        look(13.4)
        assert admitted == [1, 3, 4]
