"""For anything on the disk, a reader gives or raises what it promises: no crash, and one clear line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.attempt.records import exception_of
from supervisor.core.telling.ledger import report
from supervisor.core.telling.news import hear
from supervisor.core.telling.progress import Progress
from supervisor.core.telling.story import tell
from supervisor.errors import Refusal
from supervisor.loop.flush import Flusher
from supervisor.loop.narrator import Narrator
from supervisor.reading.events_file import EventReader, read_events
from supervisor.run import spec as specs
from supervisor.run.events import EventLog
from supervisor.run.folder.lock import describe, holder
from supervisor.run.folder.stops import Stops
from supervisor.run.hang_limits import Paces
from supervisor.run.runs import Known, load
from supervisor.run.status import status
from tests.support.mangled import FAST, SLOW, VALUES, as_json, bounded, files, is_one_line, mangled, values
from tests.support.runs_on_disk import recovered_run
from trainer.gpt.metrics import Metrics
from trainer.rundir.codes import Phase
from trainer.rundir.files.codec import decode
from trainer.rundir.layout import RunDir
from trainer.rundir.records import faults
from trainer.rundir.records.beats import BeatReader, BeatWriter, Source, create_beats
from trainer.rundir.records.gate import Gate
from trainer.rundir.records.learned import remembered
from trainer.rundir.records.notes import NoteReader

SPEC = {
    "schema": 1,
    "run": "gpt-7f3a",
    "mark": "abc123",
    "command": ["train.py", "--x"],
    "module": False,
    "nproc": 2,
    "cwd": "/",
    "resume_args": "--resume yes",
    "backoff": [1.0, 300.0],
    "hang_timeout": "off",
    "inject": ["kill:rank=1@step=40"],
    "created": "2026-11-24T02:00:00Z",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parsers")


@FAST
@given(data=st.data())
def test_json_of_ours(data: st.DataObject) -> None:
    """decode() gives values whose numbers int() and float() take, or a ValueError."""
    raw = data.draw(files({"a": [1, 2.5, {"b": None}]}))
    try:
        with bounded():
            value = decode(raw, Any)
    except ValueError:
        return

    def walk(part: Any) -> None:
        if isinstance(part, int | float):
            # Not equal: a float does not hold every integer beyond 2**53.
            assert math.isfinite(float(part)) and (int(part) < 2**63 or isinstance(part, float))
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            walk(child)

    walk(value)


@SLOW
@given(data=st.data())
def test_run_json(data: st.DataObject, folder: Path) -> None:
    """A run, with a Spec of which every field is of its type, or a Refusal in one line."""
    (folder / "run.json").write_bytes(data.draw(files(SPEC)))
    try:
        with bounded():
            known = load(folder)
            assert known is not None
            spec = specs.restore(known.spec)
    except Refusal as refusal:
        assert is_one_line(refusal)
        assert refusal.exit_code == 2
        return
    assert isinstance(known.id, str)
    again = RunDir(folder / "again")
    again.path.mkdir(exist_ok=True)
    specs.save(again, spec)
    saved = load(again.path)
    assert saved is not None
    assert specs.restore(saved.spec) == spec


@pytest.fixture(scope="module")
def events(folder: Path) -> bytes:
    recovered_run(folder / "recovered")
    return (folder / "recovered" / "events.jsonl").read_bytes()


@SLOW
@given(data=st.data())
def test_events(data: st.DataObject, folder: Path, events: bytes) -> None:
    """Any bytes and values in events: what can be read is read, told, counted and in `status`; the next writes on."""
    run = RunDir(folder / "events")
    run.path.mkdir(exist_ok=True)
    if data.draw(st.booleans()):
        raw = data.draw(mangled(events))
    else:
        lines = [json.loads(line) for line in events.splitlines()]
        at = data.draw(st.integers(0, len(lines) - 1))
        raw = b"".join(as_json(data.draw(values(v)) if i == at else v) + b"\n" for i, v in enumerate(lines))
    run.events.write_bytes(raw)
    with bounded():
        found, _ = read_events(run.events)
        assert [event.fields for event in EventReader(run.events).read()] == found[: len(found)]
        story = tell(found)
        assert isinstance(story.state, str)
        json.dumps(report(story, story.last), allow_nan=False)
        json.dumps(status(Known(run, SPEC)), allow_nan=False)
        log = EventLog(run, "gpt")
        log.emit("warning", text="next")
        log.close()
        after, _ = read_events(run.events)
    assert after[: len(found)] == found
    assert after[-1]["text"] == "next"


@SLOW
@given(data=st.data())
def test_the_story_takes_any_values(data: st.DataObject, events: bytes) -> None:
    """tell() and the ledger, of events that have fields of any kind: also numbers that no file of ours holds."""
    told = [json.loads(line) for line in events.splitlines()]
    at = data.draw(st.integers(0, len(told) - 1))
    told[at] = data.draw(st.dictionaries(st.sampled_from([*told[at], "step", "seconds"]), VALUES)) | {
        "msg": told[at]["msg"]
    }
    with bounded():
        report(tell(told), 100.0)


RECORD = {
    "rank": 1,
    "type": "E",
    "message": "m",
    "frame": "f",
    "mono": 1.5,
    "exit_code": 1,
    "traceback": "t",
    "time": 2.0,
}


@SLOW
@given(data=st.data())
def test_error_records(data: st.DataObject, folder: Path) -> None:
    """A Raised, or None."""
    (folder / "error.json").write_bytes(data.draw(files(RECORD)))
    with bounded():
        record = exception_of(folder / "error.json")
    if record is not None:
        assert isinstance(record.rank, int)
        assert isinstance(record.exit_code, int)
        assert "\n" not in record.message


NOTES = [
    {"kind": "resumed", "mono": 1.0, "step": 4, "source": "disk"},
    {"kind": "checkpoint_saved", "mono": 1.0, "step": 5, "bytes": 10, "seconds": 0.5},
    {"kind": "flush_due", "mono": 2.0, "step": 6, "keep": 3},
    {"kind": "checkpoint_bad", "mono": 2.0, "path": "p", "reason": "r", "moved_to": None},
    {"kind": "warning", "mono": 2.0, "text": "t"},
]


@SLOW
@given(data=st.data())
def test_notes(data: st.DataObject, folder: Path) -> None:
    """Only notes come out, and each of them can be told."""
    run = RunDir(folder / "noted")
    run.path.mkdir(exist_ok=True)
    path = run.path / "notes.jsonl"
    lines = [json.dumps(note).encode() for note in NOTES]
    path.write_bytes(
        data.draw(mangled(b"\n".join(lines) + b"\n") | values(NOTES[data.draw(st.integers(0, 4))]).map(as_json))
    )
    with path.open("ab") as file:
        file.write(b"\n" + lines[-1] + b"\n")
    with bounded():
        notes = NoteReader(path).read()
        log = EventLog(run, "gpt")
        told = hear(Progress(), [(0, note) for note in notes])[1]
        Narrator(log).tell(told)
        Flusher(run, "mark").hear([(0, note) for note in notes])
        log.close()
    assert notes[-1] == NOTES[-1]


@SLOW
@given(data=st.data())
def test_beats(data: st.DataObject, folder: Path) -> None:
    """Beats of phases and sources that there are, or a ValueError or OSError when the file is opened."""
    path = folder / "beats"
    path.unlink(missing_ok=True)
    create_beats(path, 2)
    writer = BeatWriter(path, 1, 4321)
    writer.step(7)
    writer.close()
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = bytearray(data.draw(mangled(bytes(raw))))
    else:
        word = data.draw(st.integers(0, len(raw) // 8 - 1))
        raw[word * 8 : word * 8 + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path.write_bytes(raw)
    try:
        reader = BeatReader(path)
    except (ValueError, OSError) as error:
        assert is_one_line(error)
        return
    for beat in reader.read():
        assert beat.rank in (0, 1)
        assert beat.pid > 0
        assert isinstance(beat.phase, Phase)
        assert isinstance(beat.source, Source)
    reader.close()


@SLOW
@given(data=st.data())
def test_learned_modules_and_the_lock(data: st.DataObject, folder: Path) -> None:
    """Names, and who holds the lock, in one line; empty if they cannot be read."""
    path = folder / "modules.json"
    path.write_bytes(data.draw(files(["torch", "numpy.linalg"])))
    assert all(isinstance(name, str) for name in remembered(path))
    (folder / "lock.json").write_bytes(data.draw(files({"pid": 1, "host": "h", "since": "s"})))
    who = holder(RunDir(folder))
    assert isinstance(who, dict)
    describe(RunDir(folder))


@SLOW
@given(data=st.data())
def test_release(data: st.DataObject, folder: Path) -> None:
    """A release of which every part is of its type, or a ValueError in one line."""
    gate = Gate(folder)
    gate.release.write_bytes(data.draw(files({"attempt": 3, "env": {"A": "b"}, "arguments": ["-m", "x"]})))
    try:
        body = gate.released()
    except ValueError as error:
        assert is_one_line(error)
        return
    assert body is not None
    assert all(isinstance(text, str) for text in [*body.env, *body.env.values(), *body.arguments])


@SLOW
@given(data=st.data())
def test_what_a_run_has_learned_of_its_speed(data: st.DataObject, folder: Path) -> None:
    """Times that can be; whatever is in the file costs nothing but having to learn again."""
    run = RunDir(folder)
    body = {"recent": [0.5, 1], "slowest": 2.0, "phases": {"save": 3.0}, "restart": None}
    run.pace.write_bytes(data.draw(files(body)))
    pace = Paces(run).last()
    times = [*pace.recent, pace.slowest, *pace.phases.values(), pace.restart or 0.0, pace.typical]
    assert all(0.0 <= seconds < float("inf") for seconds in times)
    Paces(run).write(replace(pace, restart=1.5))
    assert Paces(run).last() == replace(pace, restart=1.5)


@FAST
@given(data=st.data(), step=st.integers(0, 40))
def test_metrics_at_a_resume(data: st.DataObject, step: int, folder: Path) -> None:
    """What is left is part of what was there, ends with the line of a step that is done, and the next line is read."""
    lines = b"".join(b'{"step": %d, "loss": 2.5}\n' % n for n in range(1, 41))
    raw = data.draw(mangled(lines))
    path = folder / "metrics.jsonl"
    path.write_bytes(raw)
    with bounded():
        metrics = Metrics(path)
        metrics.resume_at(step)
        left = path.read_bytes()
        metrics.write(step=step + 1)
        metrics.close()
    assert raw.startswith(left)
    assert not left or 0 <= json.loads(left.splitlines()[-1])["step"] <= step
    assert json.loads(path.read_bytes().splitlines()[-1])["step"] == step + 1


@FAST
@given(data=st.data())
def test_a_stop_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is in it, it asks to stop, once, and at once only if it says so."""
    path = tmp_path_factory.getbasetemp() / "stop"
    path.write_bytes(raw := data.draw(mangled(b"now")))
    stops = Stops()
    stops.read(path)
    stops.read(path)
    assert stops.kind is not None
    assert stops.now is (raw.strip() == b"now")


@SLOW
@given(data=st.data())
def test_armed_and_fired_faults(data: st.DataObject, folder: Path) -> None:
    """Files that are no faults are passed over."""
    place = folder / "faults"
    place.mkdir(exist_ok=True)
    body = {"spec": "kill:rank=1@step=40", "armed": 1.5, "time": 2.0}
    (place / "0001.spec").write_bytes(data.draw(files(body)))
    (place / "0002.spec").write_bytes(as_json(body))
    (place / "0001.rank1.fired").write_bytes(
        data.draw(files({"spec": "s", "rank": 1, "attempt": 0, "step": 1, "mono": 1.0}))
    )
    armed = faults.armed(place)
    assert armed[-1].number == 2
    assert all(isinstance(fault.armed, float) for fault in armed)
    assert all(isinstance(fired, dict) for fired in faults.fired(place).values())
