"""The judge of chaos: each fault against what the events say, each failure against a fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.chaos.compare import compare
from supervisor.core.chaos.judge import Row, judge, spans
from supervisor.core.chaos.plan import Blow, Round
from supervisor.core.telling.story import tell
from tests.support.jobs import on_ranks, write
from trainer.rundir.layout import RunDir
from trainer.rundir.records.fault_kinds import Moment, Tier


def blow(spec: str, moment: Moment = Moment.STEP, shows: bool = True) -> Blow:
    return Blow(spec, spec.partition("@")[0].partition(":")[0], moment, shows)


class Tape:
    """Events of a run, ten of them a second."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._mono = 100.0
        self._attempt = -1
        self("run_started")

    def __call__(self, msg: str, **fields: Any) -> Tape:
        self._mono += 0.1
        self.events.append({"msg": msg, "mono": self._mono, "attempt": self._attempt, **fields})
        return self

    def attempt(self, start: int) -> Tape:
        """An attempt that trains from `start` on."""
        self._attempt += 1
        self("attempt_started", attempt=self._attempt, wanted_mono=self._mono + 0.1, launcher_pid=1)
        return self("first_step", step=start + 1, from_step=start, at_mono=self._mono + 0.1)

    def fault(self, spec: str, step: int) -> Tape:
        return self("fault_injected", spec=spec, step=step, rank=0, fired_mono=self._mono + 0.05)

    def dies(self, cause: str, step: int) -> Tape:
        self("verdict", cause=cause, step=step, failed_mono=self._mono, reason=f"it was {cause}")
        return self("group_gone", step=step)

    def ends(self, step: int) -> Tape:
        self("verdict", cause="finished", step=step, failed_mono=self._mono)("group_gone", step=step)
        return self("run_ended", state="finished", exit_code=0, step=step)


def rows(tape: Tape, *blows: Blow, survivors: Mapping[int, int] | None = None) -> list[Row]:
    return judge(Round(1, Tier.MEMORY, blows), tape.events, survivors or {})


def test_what_a_fault_cost() -> None:
    """A fault that was seen as what it was passes, with its times from the moment at which it fired."""
    tape = Tape().attempt(0).fault("kill:rank=1@step=40", 40).dies("killed", 40).attempt(39).ends(99)

    (row,) = rows(tape, blow("kill:rank=1@step=40"))

    assert row.ok and row.ended
    assert (row.attempt, row.step, row.detected, row.lost_steps) == (0, 40, "killed", 1)
    assert row.detect_s == pytest.approx(0.15) and row.recover_s == pytest.approx(0.45)


def test_a_recovery_that_was_struck_itself() -> None:
    """The time of a recovery that another fault held up says nothing of the first one; its lost steps are told."""
    tape = Tape().attempt(0).fault("kill@step=40", 40).dies("killed", 40)
    tape("attempt_started", attempt=1, launcher_pid=1).fault("gil@phase=restore,step=40", 0).dies("hang", -1)
    tape.attempt(39).ends(99)

    first, second = rows(tape, blow("kill@step=40"), blow("gil@phase=restore,step=40", Moment.RESTORE))

    assert first.ok and first.recover_s is None and first.lost_steps == 1
    assert second.ok and second.recover_s is not None


@pytest.mark.parametrize(
    ("spec", "tape", "problem"),
    [
        ("kill@step=4", Tape().attempt(0).ends(9), "never fired"),
        ("kill@step=4", Tape().attempt(0).fault("kill@step=4", 4).ends(9), "nobody noticed; killed"),
        (
            "stop@step=4",
            Tape().attempt(0).fault("stop@step=4", 4).dies("hang", 4).attempt(4).ends(9),
            "as hang, not as stopped",
        ),
        ("enospc@step=4", Tape().attempt(0).fault("enospc@step=4", 4).ends(9), "checkpoint_failed was expected"),
        ("torn@step=4", Tape().attempt(0).fault("torn@step=4", 4).ends(9), "checkpoint_quarantined was expected"),
        ("kill-supervisor@step=4", Tape().attempt(0).fault("kill-supervisor@step=4", 4), "no other supervisor"),
    ],
)
def test_what_fails(spec: str, tape: Tape, problem: str) -> None:
    """A fault that did not strike, was not seen, or was taken for another one does not pass."""
    (row,) = rows(tape, blow(spec))

    assert not row.ok and problem in row.problem


def test_a_failure_without_a_fault_is_told() -> None:
    """A slow step must not be taken for a failure; whatever nobody asked for gets a row of its own."""
    tape = Tape().attempt(0).fault("slow@step=4", 4).dies("hang", 5).attempt(5).ends(9)

    slow, unexplained = rows(tape, blow("slow@step=4"))

    assert slow.detected is None and slow.ok
    assert (unexplained.spec, unexplained.detected, unexplained.ok) == ("(no fault)", "hang", False)


def test_one_failure_explains_one_fault() -> None:
    """Of two faults in one attempt only one has been seen."""
    tape = Tape().attempt(0).fault("kill@step=4", 4).fault("kill@step=5", 5).dies("killed", 5).attempt(5).ends(9)

    assert sorted(row.ok for row in rows(tape, blow("kill@step=4"), blow("kill@step=5"))) == [False, True]


def test_what_is_told_by_an_event() -> None:
    """A full disk and a damaged checkpoint are seen by what was said of them; damage that nobody read is no failure."""
    tape = Tape().attempt(0).fault("enospc@step=4", 4).fault("enospc:rank=1@step=4", 4)("checkpoint_failed", step=5)
    tape.fault("torn@step=6", 6).fault("kill@step=7", 7).dies("killed", 7).attempt(0)
    tape("checkpoint_quarantined", path="step-00000006")("resumed", step=0).fault("corrupt@phase=save,step=8", 8)
    # Another one than the newest of that moment.
    tape("checkpoint_quarantined", path="step-00000009").ends(9)

    specs = blow("enospc@step=4"), blow("enospc:rank=1@step=4"), blow("torn@step=6"), blow("kill@step=7")
    found = rows(tape, *specs, blow("corrupt@phase=save,step=8", Moment.SAVE, shows=False))

    seen = ["checkpoint_failed", "checkpoint_failed", "checkpoint_quarantined", "killed", "not read"]
    assert [r.detected for r in found] == seen
    assert all(row.ok for row in found) and [row.ended for row in found] == [False, False, False, True, False]


def test_what_went_by_unnoticed() -> None:
    """A save after the disk was full, a resume from damage: what is told of a later fault does not excuse an earlier
    one."""
    tape = Tape().attempt(0).fault("enospc@step=4", 4)("checkpoint_committed", step=4)("checkpoint_committed", step=5)
    tape.fault("enospc@step=6", 6)("checkpoint_failed", step=7)
    tape.fault("torn@step=8", 8).fault("kill@step=9", 9).dies("killed", 9).attempt(8)("resumed", step=8)
    tape.fault("torn@step=11", 11).fault("kill@step=12", 12).dies("killed", 12).attempt(4)
    tape("checkpoint_quarantined")("resumed", step=4).ends(20)

    names = "enospc@step=4", "enospc@step=6", "torn@step=8", "kill@step=9", "torn@step=11", "kill@step=12"
    assert [row.ok for row in rows(tape, *map(blow, names))] == [False, True, False, True, True, True]


def test_a_dead_supervisor() -> None:
    """Its attempt is lost, and the run is taken up by the next one, at whose first step it has recovered."""
    lost = Tape().attempt(0)("run_started").fault("kill-supervisor@step=4", 4)
    lost.events[-1]["fired_mono"] = lost.events[-2]["mono"] - 0.05
    lost.attempt(4).ends(9)
    (row,) = rows(lost, blow("kill-supervisor@step=4"))
    assert row.ok and (row.attempt, row.detected) == (0, "lost") and row.recover_s is not None


def test_a_fault_while_nobody_looked() -> None:
    """What strikes between the death of a supervisor and the next one's birth is lost with the attempt."""
    tape = Tape().attempt(0)("run_started").fault("kill-supervisor@step=4", 4).fault("kill@step=5", 5)
    for event, ago in zip(tape.events[-2:], (0.2, 0.25), strict=True):
        event["fired_mono"] -= ago
    tape.attempt(5).ends(9)

    assert [(r.detected, r.ok) for r in rows(tape, blow("kill-supervisor@step=4"), blow("kill@step=5"))] == [
        ("lost", True),
        ("lost", True),
    ]


def test_what_is_left_and_what_overlaps() -> None:
    """Processes that outlive their attempt, and an attempt that begins before the last is gone, fail the round."""
    tape = Tape().attempt(0).fault("kill@step=4", 4).dies("killed", 4).attempt(4).ends(9)
    (row,) = rows(tape, blow("kill@step=4"), survivors={0: 2})
    assert row.leftovers == 2 and not row.ok

    early = [dict(e) for e in tape.events]
    next(e for e in early if e["msg"] == "attempt_started" and e["attempt"] == 1)["wanted_mono"] = 100.2
    assert any("before the previous attempt" in r.problem for r in judge(Round(1, Tier.MEMORY, ()), early, {}))


def test_spans_follow_each_other() -> None:
    """The time line of the page: attempts in order, each from its begin over its failure to its end."""
    tape = Tape().attempt(0).fault("kill@step=4", 4).dies("killed", 4).attempt(4).ends(9)
    first, second = spans(tell(tape.events))

    for span in (first, second):
        assert span.trained is not None and span.begin <= span.trained <= span.over <= span.gone
    assert first.gone <= second.begin and (first.cause, second.cause) == ("killed", "finished")


names = [
    "run_started",
    "attempt_started",
    "first_step",
    "fault_injected",
    "verdict",
    "group_gone",
    "run_ended",
    "noise",
]
garbage = st.dictionaries(
    st.sampled_from(["msg", "mono", "attempt", "step", "spec", "fired_mono", "cause", "wanted_mono"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([*names, "kill@step=4"]),
)


@given(st.lists(garbage, max_size=12))
def test_any_events_are_judged(events: list[dict[str, Any]]) -> None:
    """Whatever stands in the file, there is a row for the fault."""
    found = judge(Round(1, Tier.DISK, (blow("kill@step=4"),)), events, {})

    assert found[0].spec == "kill@step=4"


def two(tmp_path: Path) -> tuple[RunDir, RunDir]:
    runs = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    for run in runs:
        run.path.mkdir()
    return runs


def test_checkpoints_are_compared_by_their_bits(tmp_path: Path) -> None:
    """The same state is the same, whoever saved it and when; one bit, another step, a missing one is a difference."""
    one, two_ = two(tmp_path)
    assert compare(one, two_, []).same is None

    def save(run: RunDir, step: int) -> None:
        def by(ranks: Any) -> None:
            assert write(run.checkpoints, step, ranks=ranks).error is None

        assert on_ranks(2, by) == [None, None]

    save(one, 4)
    assert compare(one, two_, []).difference == "it has no good checkpoint"
    save(two_, 3)
    assert "step 3, not 4" in compare(one, two_, []).difference
    save(two_, 4)
    assert compare(one, two_, []).same is True


def test_files_are_compared_by_their_bits(tmp_path: Path) -> None:
    """Metrics and named files: equal, different, or there in only one of the runs."""
    one, other = two(tmp_path)
    for run in (one, other):
        run.metrics.write_text('{"step": 1}\n')
        (run.path / "out").mkdir()
        (run.path / "out" / "final.pt").write_bytes(b"bits")
    assert compare(one, other, ["out/*.pt"]).what == ("metrics.jsonl", "out/final.pt")

    (other.path / "out" / "final.pt").write_bytes(b"bitz")
    assert compare(one, other, ["out/*.pt"]).difference == "final.pt differs"
    (other.path / "out" / "more.pt").write_bytes(b"")
    assert "more.pt is in one" in compare(one, other, ["out/*.pt"]).difference
    other.metrics.write_text('{"step": 2}\n')
    assert compare(one, other, []).difference == "metrics.jsonl differs"


def test_each_nan_is_its_own_failure() -> None:
    """Two of them in attempts that follow each other are not the first one, failing again."""
    first, second = "nan:rank=0@step=10", "nan:rank=1@step=20"
    tape = Tape().attempt(0).fault(first, 10).dies("nan", 10).attempt(9).fault(second, 20).dies("nan", 20)
    found = rows(tape.attempt(19).ends(90), blow(first), blow(second))
    assert [(row.detected, row.attempt, row.problem) for row in found] == [("nan", 0, ""), ("nan", 1, "")]


def test_all_ranks_need_not_fall_in_one_attempt() -> None:
    """A rank that was killed as a survivor, before the fault came to it, meets it in the next attempt."""
    spec = "kill:rank=all@phase=startup,step=10"
    tape = Tape().attempt(0).fault(spec, 0).dies("killed", 0).attempt(0).fault(spec, 0).dies("killed", 0)
    assert [row.problem for row in rows(tape.attempt(0).ends(90), blow(spec))] == [""]
    # Not any failure of a later attempt, though.
    tape = Tape().attempt(0).fault(spec, 0).dies("killed", 0).attempt(0).dies("killed", 0)
    assert len(rows(tape.attempt(0).ends(90), blow(spec))) == 2


def test_what_was_saved_with_a_nan_fails_again() -> None:
    """Attempts in a row that die of a NaN which one fault began are its doing; a later one is not."""
    spec = "nan:rank=0@step=10"
    tape = Tape().attempt(0).fault(spec, 10).dies("nan", 10).attempt(9).dies("nan", 10)
    assert [not row.problem for row in rows(tape.attempt(4).ends(90), blow(spec))] == [True]

    tape = Tape().attempt(0).fault(spec, 10).dies("nan", 10).attempt(9).dies("killed", 12)
    found = rows(tape.attempt(12).dies("nan", 20).attempt(16).ends(90), blow(spec))
    assert [(not row.problem, row.detected) for row in found] == [(True, "nan"), (False, "killed"), (False, "nan")]
