"""The leaf that both sides share: names, beats, notes, and who supervises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rundir.codes import Doing, Phase
from trainer.rundir.duration import parse_duration
from trainer.rundir.environment import supervised
from trainer.rundir.layout import RunDir, committed_steps, step_name, step_of
from trainer.rundir.records.beats import BeatReader, BeatWriter, Source, create_beats
from trainer.rundir.records.notes import NoteReader, NoteWriter
from trainer.rundir.variables import ATTEMPT, MARK, PLACE, RESUME, RUN_DIR


@given(st.integers(0, 10**12))
def test_a_step_has_one_name(step: int) -> None:
    """Name and step map to each other, and no other spelling of a number is a step."""
    assert step_of(step_name(step)) == step
    assert step_of(f"step-0{step:08d}") is None
    assert step_of(step_name(step) + "\n") is None


def test_committed_steps_are_in_order(tmp_path: Path) -> None:
    """By number, also beyond eight digits; what has another name is not one."""
    for name in ("step-00000010", "step-00000002", "step-100000000", ".step-00000003.tmp-a", "latest", "step-3"):
        (tmp_path / name).mkdir()

    assert committed_steps(tmp_path) == [2, 10, 100_000_000]
    assert committed_steps(tmp_path / "none") == []


def test_attempts_are_in_order(tmp_path: Path) -> None:
    """By number; other folders do not count."""
    run = RunDir(tmp_path)
    assert run.attempts() == []
    for name in ("0002", "0000", "10000", "notes"):
        (tmp_path / "attempts" / name).mkdir(parents=True)

    assert run.attempts() == [0, 2, 10000]
    assert run.attempt(2).rank_log(1) == tmp_path / "attempts" / "0002" / "rank1.log"


def test_beats_are_read_as_written(tmp_path: Path) -> None:
    """Each rank's own record: silent until it registers, then its pid, step, phase, source and where it went on
    from."""
    path = tmp_path / "beats"
    create_beats(path, 3)
    reader = BeatReader(path)
    assert reader.read() == []

    writer = BeatWriter(path, 1, os.getpid())
    first = reader.read()
    writer.resume_at(40)
    writer.step(41)
    writer.phase(Phase.SAVE)
    writer.saved()
    (beat,) = reader.read()

    assert [(b.rank, b.pid, b.phase, b.source, b.first_step) for b in first] == [
        (1, os.getpid(), Phase.STARTUP, Source.NONE, -1)
    ]
    assert (beat.step, beat.phase, beat.source, beat.saves, beat.first_step) == (41, Phase.SAVE, Source.LOOP, 1, 40)
    assert beat.at >= first[0].at
    reader.ask_faults()
    assert writer.faults_asked() == 1

    assert (beat.total, beat.loss, beat.loss_step, beat.lr, beat.doing) == (None, None, None, None, Doing.NONE)
    writer.total(1000)
    writer.loss(-0.25, 41)
    writer.rate(3e-4)
    writer.doing(Doing.COMPILING)
    (told,) = reader.read()
    assert (told.total, told.loss, told.loss_step, told.lr, told.doing) == (1000, -0.25, 41, 3e-4, Doing.COMPILING)
    assert told.at == beat.at <= told.since
    # Another process takes the number over: nothing of the old one is left, and nothing of it comes any more.
    BeatWriter(path, 1, os.getpid() + 1).close()
    writer.loss(1.0, 42)
    writer.total(7)
    (other,) = reader.read()
    assert (other.step, other.total, other.loss, other.lr, other.doing) == (0, None, None, None, Doing.NONE)
    writer.close()
    reader.close()


def test_a_file_that_is_not_beats(tmp_path: Path) -> None:
    """Another file, or another version's, is an error and not a reading."""
    (tmp_path / "beats").write_bytes(bytes(256))
    with pytest.raises(ValueError, match="not a beats file"):
        BeatReader(tmp_path / "beats")


def test_notes_are_followed_by_whole_lines(tmp_path: Path) -> None:
    """Each note once, in order; half a line waits for its end, and what is no note is passed over."""
    path = tmp_path / "notes.rank0.jsonl"
    reader = NoteReader(path)
    assert reader.read() == []

    NoteWriter(path)("checkpoint_saved", step=4, bytes=10)
    with path.open("ab") as file:
        file.write(b'nonsense\n[1]\n{"kind": "war')
        file.flush()
        first = reader.read()
        file.write(b'ning", "text": "x"}\n')
    second = reader.read()

    assert [(note["kind"], note["step"]) for note in first] == [("checkpoint_saved", 4)]
    assert [(note["kind"], note["text"]) for note in second] == [("warning", "x")]
    assert reader.read() == []


def test_a_note_never_raises(tmp_path: Path) -> None:
    """No file to write to, or none at all: training goes on."""
    NoteWriter(tmp_path / "none" / "notes")("warning", text="x")
    NoteWriter(None)("warning", text="x")

    assert list(tmp_path.iterdir()) == []


def test_who_supervises() -> None:
    """Nobody, unless the run, the attempt and the mark are all there."""
    environ = {RUN_DIR: "/runs/a", ATTEMPT: "3", MARK: "m.3", RESUME: "must"}
    here = supervised(environ)

    assert here is not None
    assert (here.run.path, here.attempt_number, here.resume) == (Path("/runs/a"), 3, "must")
    for name in (RUN_DIR, ATTEMPT, MARK):
        assert supervised({k: v for k, v in environ.items() if k != name}) is None


def test_what_a_node_keeps_to_itself() -> None:
    """Mapped memory and FIFOs are in the node's own place, where there is one; all else is in the run's folder."""
    environ = {RUN_DIR: "/runs/a", ATTEMPT: "3", MARK: "m.3", PLACE: "/dev/shm/p"}
    here, alone = supervised(environ), supervised({**environ, PLACE: ""})

    assert here is not None and alone is not None
    assert (here.run.standby, here.attempt.beats) == (
        Path("/dev/shm/p/standby"),
        Path("/dev/shm/p/attempts/0003/beats"),
    )
    assert here.attempt.rank_log(1) == alone.attempt.rank_log(1) == Path("/runs/a/attempts/0003/rank1.log")
    assert (alone.run.standby, alone.attempt.beats) == (Path("/runs/a/standby"), Path("/runs/a/attempts/0003/beats"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("7", 7)]
)
def test_durations(text: str, seconds: float) -> None:
    """As people write them, in seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "5 minutes", "inf", "1e3"])
def test_what_is_not_a_duration(text: str) -> None:
    """The error says how to write one."""
    with pytest.raises(ValueError, match="30s, 5m or 2h"):
        parse_duration(text)
