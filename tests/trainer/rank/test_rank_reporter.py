"""What a rank leaves behind for the supervisor: its record, its beats, the faults it claims. In this process."""

from __future__ import annotations

import errno
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint import CheckpointMismatch
from trainer.rank import reporter as module
from trainer.rank.exceptions import record_exception, without_our_frames
from trainer.rank.reporter import Reporter
from trainer.rundir.codes import Phase
from trainer.rundir.environment import Supervised
from trainer.rundir.layout import RunDir
from trainer.rundir.records import faults
from trainer.rundir.records.beats import BeatReader, create_beats


class Place:
    def __init__(self, path: Path) -> None:
        self.run = RunDir(path)

    def rank(self, rank: int = 1, attempt: int = 0) -> Reporter:
        """That rank's reporter, as its process would make it in a new attempt."""
        folder = self.run.attempt(attempt)
        if not folder.path.exists():
            folder.path.mkdir(parents=True)
            create_beats(folder.beats, 2)
        self.beats = BeatReader(folder.beats)
        return Reporter(Supervised(self.run, attempt, folder, "auto", os.getpid()), rank)

    def record(self, attempt: int = 0, rank: int = 1) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.run.attempt(attempt).error(rank).read_bytes())
        return record

    def phase(self) -> Phase:
        return self.beats.read()[0].phase


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # Of the process, not of a rank: a file that stays open until its end.
    monkeypatch.setattr(module, "_allow_stacks", lambda place, rank: None)
    return Place(tmp_path)


def _fail(error: BaseException) -> None:
    try:
        raise ValueError("at first")
    except ValueError as first:
        raise error from first


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (RuntimeError("no"), RuntimeError, 1),
        (CheckpointMismatch("another model"), SystemExit, 78),
        (KeyboardInterrupt(), KeyboardInterrupt, -signal.SIGINT),
        (SystemExit("words"), SystemExit, 1),
    ],
)
def test_the_record_of_an_exception(
    place: Place, error: BaseException, raised: type[BaseException], status: int
) -> None:
    """Type, place in the script, what it came from, and the status with which the rank will exit: also that of an error
    which no restart cures."""
    with pytest.raises(raised) as seen, record_exception(place.rank()):
        _fail(error)
    if status > 1:
        assert seen.value.code == status  # type: ignore[attr-defined]
    record = place.record()
    assert (record["rank"], record["exit_code"], record["type"]) == (1, status, type(error).__name__)
    assert [cause["message"] for cause in record["because"]] == ["at first"]
    assert record["frame"].startswith(__file__) and record["frame"].endswith("_fail")
    assert all(str(Path(module.__file__).parent) not in frame for frame in record["frames"])


def _through_us(call: Callable[[], object]) -> object:
    """Calls it as a hook of ours does."""
    ours = Path(module.__file__).parent / "hooks" / "some.py"
    code = compile("def hook(call):\n    return call()\n", str(ours), "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    return names["hook"](call)


def test_a_traceback_is_as_without_us(place: Place) -> None:
    """On record, and in the log: no frame of a hook, neither of the error nor of what it came from. An error that is
    all our own keeps its frames."""

    def cause() -> None:
        raise ValueError("at first")

    def script() -> None:
        try:
            _through_us(cause)
        except ValueError as error:
            raise RuntimeError("bad config") from error

    made = place.rank()
    with pytest.raises(RuntimeError) as seen, record_exception(made):
        _through_us(lambda: _through_us(script))
    shown = "".join(traceback.format_exception(without_our_frames(seen.value)))
    for text in (shown, place.record()["traceback"]):
        assert "some.py" not in text
        assert all(f"in {name}" in text for name in ("cause", "script")) and "direct cause" in text
    with pytest.raises(TypeError) as ours:
        _through_us(None)  # type: ignore[arg-type]
    ours.value.__traceback__ = ours.value.__traceback__.tb_next.tb_next  # type: ignore[union-attr]
    assert "some.py" in "".join(traceback.format_exception(without_our_frames(ours.value)))


def test_ends_that_are_no_exception(place: Place) -> None:
    """A bare status speaks for itself; with one or without, the rank is past its training."""
    with pytest.raises(SystemExit), record_exception(place.rank()):
        raise SystemExit(3)
    assert place.phase() is Phase.TEARDOWN
    with record_exception(place.rank()):
        pass
    assert place.phase() is Phase.TEARDOWN
    assert not place.run.attempt(0).error(1).exists()


def test_the_record_on_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes where room was kept for it, whole and short, whatever is in it."""
    made = place.rank()
    room = next(place.run.attempt(0).path.glob(".room.rank1.*"))
    kept = room.stat().st_blocks

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "replace_file", full)
    made.failed(ValueError("x" * 100_000), 1)
    assert kept * 512 >= 4096
    record = place.record()
    assert (record["type"], record["exit_code"], len(record["message"])) == ("ValueError", 1, 200)
    assert not room.exists()


def test_a_phase_is_over_however_it_ends(place: Place) -> None:
    """A save that fails is not one that never ends."""
    made = place.rank()
    with pytest.raises(OSError), made.during(Phase.SAVE):
        assert place.phase() is Phase.SAVE
        raise OSError
    assert place.phase() is Phase.TRAIN


def test_a_fault_fires_once_a_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its step, on its rank, recorded before it strikes; not in the next attempt. Asked for later, it is heard
    of."""
    struck: list[tuple[str, int, bool]] = []

    def inflict(fault: faults.Fault, made: Reporter, *_: Any) -> None:
        struck.append((fault.text, made._done, faults.has_fired(place.run.faults, fault, made.rank)))

    monkeypatch.setattr(module, "inflict", inflict)
    faults.arm(place.run.faults, faults.parse_fault("slow:rank=1@step=2"))
    faults.arm(place.run.faults, faults.parse_fault("slow:rank=0@step=1"))
    made = place.rank()
    made.resume_at(5)
    made.phase(Phase.TRAIN)
    assert struck == [], "between two steps"
    made.resume_at(0)
    for step in range(1, 5):
        made.step(step)
    assert struck == [("slow:rank=1@step=2", 2, True)]

    faults.arm(place.run.faults, faults.parse_fault("slow:rank=all@phase=save"))
    made.step(5)
    with made.during(Phase.SAVE):
        assert len(struck) == 1
    place.beats.ask_faults()
    made.step(6)
    with made.during(Phase.SAVE):
        assert struck[1:] == [("slow:rank=all@phase=save", 6, True)]

    again = place.rank(attempt=1)
    again.resume_at(1)
    with again.during(Phase.SAVE):
        again.step(2)
    assert len(struck) == 2


def test_where_a_rank_is(place: Place) -> None:
    """The steps of a loop count as they are said, and those of the optimizer's hook no more."""
    made = place.rank()
    made.resume_at(40)
    made.step(41)
    made.hooked(1, None, None)
    (beat,) = place.beats.read()
    assert (beat.step, beat.first_step, beat.rank, beat.pid) == (41, 40, 1, os.getpid())

    made = place.rank(attempt=1)
    made.resume_at(40)
    # An optimizer that keeps no count begins at 1 after each restore.
    made.hooked(1, None, None)
    made.hooked(2, None, None)
    assert place.beats.read()[0].step == 42

    made = place.rank(attempt=2)
    made.resume_at(40)
    # Backward passes, for want of an optimizer; one that comes later goes on from there.
    made.hooked(1, None, None)
    made.hooked(2, None, None)
    made.hooked(1, None, object())
    made.hooked(2, None, object())
    assert place.beats.read()[0].step == 44
