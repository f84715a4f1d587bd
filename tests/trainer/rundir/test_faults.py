"""Faults asked for: every spec is understood or refused in one clear line, and each fires once a run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.loop.fault_injector import FaultInjector
from trainer.rundir.codes import Phase
from trainer.rundir.duration import parse_duration
from trainer.rundir.records import faults


@pytest.mark.parametrize(
    ("spec", "kind", "rank", "step", "after"),
    [
        ("kill:rank=1@step=40", "kill", 1, 40, None),
        ("stop:rank=0@after=3s", "stop", 0, None, 3.0),
        ("corrupt:checkpoint=latest", "corrupt", 0, None, None),
        ("exit:code=7,rank=all@step=1", "exit", None, 1, None),
        ("kill-supervisor", "kill-supervisor", 0, None, None),
        ("kill:rank=1@phase=save,step=40", "kill", 1, 40, None),
        ("kill:rank=1@step=40,standby=warming", "kill", 1, 40, None),
    ],
)
def test_specs_of_the_contract(spec: str, kind: str, rank: int | None, step: int | None, after: float | None) -> None:
    """The documented spellings mean what they say."""
    fault = faults.parse_fault(spec)

    assert (fault.kind, fault.rank, fault.step, fault.after, fault.text) == (kind, rank, step, after, spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("kil:rank=1", "did you mean 'kill'"),
        ("kill:rnk=1", "did you mean 'rank'"),
        ("kill:rank=one", "whole number"),
        ("kill:rank", "needs a value"),
        ("kill@stp=4", "did you mean 'step'"),
        ("kill@step=4,after=2s", "one of step=N"),
        ("kill@", "one of step=N"),
        ("stop@after=soon", "not a duration"),
        ("stop@phase=sav", "did you mean 'save'"),
        ("stop@phase=save,after=1s", "one of step=N"),
        ("stop@phase=save,standby=warming", "one of step=N"),
        ("stop@standby=cold", "must be 'warming'"),
        ("", "unknown fault"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, says: str) -> None:
    """A misspelt word names the nearest; a bad value says what it should be."""
    with pytest.raises(faults.FaultSpecError, match=re.escape(says)):
        faults.parse_fault(spec)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text crashes the parser."""
    try:
        fault = faults.parse_fault(text)
    except faults.FaultSpecError as error:
        assert str(error).startswith("fault ")
    else:
        assert fault.kind in faults.KINDS


@given(st.text())
def test_any_duration_is_read_or_refused(text: str) -> None:
    """No text crashes the parser of durations."""
    try:
        assert parse_duration(text) >= 0.0
    except ValueError as error:
        assert "duration" in str(error) or "more than" in str(error)


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_due(step: int, at: int, armed: float, waited: float) -> None:
    """A fault is due from its step on, or its time after it was armed, or in its phase, or at once."""
    by_step = faults.Fault("kill", step=at)
    by_time = faults.Fault("kill", after=5.0, armed=armed)

    assert by_step.due(step, 0.0) == (step >= at)
    assert by_time.due(step, armed + waited) == (armed + waited >= armed + 5.0)
    assert faults.Fault("kill").due(step, 0.0)
    assert faults.Fault("kill", phase=Phase.SAVE).due(step, 0.0, Phase.SAVE)
    assert not faults.Fault("kill", phase=Phase.SAVE).due(step, 0.0, Phase.TRAIN)
    late = faults.Fault("kill", phase=Phase.SAVE, step=at)
    assert late.due(step, 0.0, Phase.SAVE) == (step >= at) and not late.due(step, 0.0, Phase.TRAIN)


@given(st.sampled_from(["@phase=restore,step=40", "@standby=warming,step=40", "@standby=warming"]), st.integers(0, 80))
def test_what_a_rank_cannot_know_is_told_to_it(trigger: str, done: int) -> None:
    """A trigger about what was before the rank was born, or about the standby, is due once the supervisor has said
    so."""
    fault = faults.parse_fault(f"kill{trigger}")
    ripe = dataclasses.replace(fault, ripe=True)

    assert fault.waits
    # A new rank knows of no step, or only of those it has done itself.
    for step in (0, done):
        assert not fault.due(step, 0.0, Phase.RESTORE)
        assert ripe.due(step, 0.0, Phase.RESTORE)
    late = done >= (fault.step or 0)
    assert fault.ripens(done, done) == late
    assert fault.ripens(done, None) == (late and not fault.standby)
    # A standby that was begun before its time does not count.
    assert fault.ripens(done, 0) == (late and not (fault.standby and fault.step))


def test_a_mark_that_is_being_written_is_told_once_it_is_whole(tmp_path: Path) -> None:
    """Its name is there before its content, which does not change the folder's time again."""
    folder = tmp_path / "faults"
    faults.arm(folder, faults.parse_fault("kill:rank=1@step=4"))
    injector = FaultInjector(folder, tmp_path, (), ())
    assert [fault.kind for fault in injector.news()[0]] == ["kill"]
    mark = folder / "0001.rank1.fired"
    mark.touch()
    for _ in range(3):
        assert injector.news() == ([], [])
    mark.write_text('{"spec": "kill:rank=1@step=4", "rank": 1, "attempt": 0, "step": 4, "mono": 1.0}')

    assert [body["fault"] for body in injector.news()[1]] == [mark.name]
    assert [injector.news() for _ in range(3)] == [([], [])] * 3


def test_a_standby_counts_from_its_beginning(tmp_path: Path) -> None:
    """One that was in the making before the step is not the one that is meant; the next one is."""
    faults.arm(tmp_path / "faults", faults.parse_fault("kill@standby=warming,step=40"))
    injector = FaultInjector(tmp_path / "faults", tmp_path, (), ())
    injector.news()

    looks = [(39, True), (41, True), (41, False), (50, False)]
    assert not any(injector.ripen(step, warming) for step, warming in looks)
    assert injector.ripen(51, True)
    assert faults.armed(tmp_path / "faults")[0].ripe
    assert not injector.ripen(52, True)


def test_ripe_is_kept(tmp_path: Path) -> None:
    """That a fault is ripe outlives whoever found it so."""
    faults.arm(tmp_path, faults.parse_fault("kill@standby=warming"))
    (fault,) = faults.armed(tmp_path)
    assert not fault.ripe

    faults.ripen(tmp_path, fault)

    (fault,) = faults.armed(tmp_path)
    assert fault.ripe


def _try_to_claim(folder: Path, wins: str) -> None:
    fault = faults.armed(folder)[0]
    if faults.claim(folder, fault, 1, attempt=0, step=3):
        with (folder / wins).open("a") as file:
            file.write("x")


def test_fires_once_among_many(tmp_path: Path) -> None:
    """However many processes find the fault due, one fires it, and it is on record with its place."""
    faults.arm(tmp_path, faults.parse_fault("kill:rank=1@step=3"))
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_try_to_claim, args=(tmp_path, "wins")) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert (tmp_path / "wins").read_text() == "x"
    (record,) = faults.fired(tmp_path).values()
    assert (record["spec"], record["rank"], record["step"]) == ("kill:rank=1@step=3", 1, 3)


def test_armed_passes_over_what_is_no_spec(tmp_path: Path) -> None:
    """Torn, empty and foreign files in the folder hurt nobody; numbers are never reused."""
    faults.arm(tmp_path, faults.parse_fault("kill"))
    for name, body in [
        ("0002.spec", b""),
        ("0003.spec", b'{"spec": "nonsense", "armed": 1}'),
        ("0004.spec", b"\xff\x00"),
        ("notes", b""),
    ]:
        (tmp_path / name).write_bytes(body)

    assert faults.arm(tmp_path, faults.parse_fault("term")) == 5
    assert [(f.number, f.kind) for f in faults.armed(tmp_path)] == [(1, "kill"), (5, "term")]
