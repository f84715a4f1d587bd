"""Which events are messages: each failure of a run, and of the rest at most ten an hour."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.telling.notices import MOST, PER, Kind, Notices
from supervisor.core.words import RunState

ENDED = (RunState.FINISHED, RunState.FAILED, RunState.STUCK, RunState.STOPPED, RunState.PREEMPTED)
EVENTS = [
    {"msg": "verdict", "cause": "hang", "reason": "nothing moved"},
    {"msg": "verdict", "cause": "killed", "reason": "rank 1 was killed"},
    {"msg": "first_step", "from_step": 40, "attempt": 3},
    {"msg": "run_ended", "state": "failed", "reason": "the budget is used up"},
    {"msg": "run_ended", "state": "finished", "reason": "every rank exited with 0"},
    {"msg": "run_ended", "state": "stopped", "reason": "by the user"},
    {"msg": "supervisor_failed", "error": "KeyError"},
    {"msg": "warning", "text": "hot"},
]


def told(*events: dict[str, Any], wanted: tuple[Kind, ...] = tuple(Kind)) -> list[str]:
    notices = Notices(wanted, "supervise status a")
    found = [notices.of({"run": "a", "mono": float(at), **event}) for at, event in enumerate(events)]
    return [notice.kind for notice in found if notice is not None]


def test_each_kind_has_its_event() -> None:
    """A first step is a recovery only after a failure; a stop that somebody or an engine asked for is no message at
    all."""
    hang, killed, first, failed, finished, stopped, broken, warning = EVENTS
    assert told(hang, first, first) == ["hang", "recovered"]
    assert told(first, killed, first) == ["recovered"]
    assert told({"msg": "verdict", "cause": "stopped_by_user"}, first) == []
    assert told(failed, finished, broken, stopped, warning) == ["failed", "finished", "failed"]
    assert told(hang, failed, wanted=(Kind.FAILED,)) == ["failed"]
    ended = [{"msg": "run_ended", "state": state, "reason": "it ends"} for state in ENDED]
    assert dict(zip(ENDED, map(told, ended), strict=True)) == {
        RunState.FINISHED: ["finished"],
        RunState.FAILED: ["failed"],
        RunState.STUCK: ["failed"],
        RunState.STOPPED: [],
        RunState.PREEMPTED: [],
    }


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 2000)), max_size=60))
def test_no_hour_has_more_than_ten_but_for_failures(drawn: list[tuple[dict[str, Any], float]]) -> None:
    notices, now, sent = Notices(tuple(Kind), "supervise status a"), 0.0, list[tuple[float, str]]()
    for event, later in drawn:
        now += later
        notice = notices.of({"run": "a", "attempt": 0, **event, "mono": now})
        if notice is not None:
            assert notice.title.startswith("a ") and notice.body.endswith("supervise status a")
            sent.append((now, notice.kind))
    for at, _ in sent:
        others = [kind for when, kind in sent if at <= when < at + PER]
        assert len(others) - others.count("failed") <= MOST
    failures = sum(event["msg"] == "supervisor_failed" or event.get("state") == "failed" for event, _ in drawn)
    assert [kind for _, kind in sent].count("failed") == failures
