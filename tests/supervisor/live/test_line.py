"""The line at the bottom, and the words of events for the one who watches."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.commands import console
from supervisor.core.telling.story import tell
from supervisor.core.words import EventName
from supervisor.live.line import cut, line
from supervisor.live.numbers import Numbers
from supervisor.live.view import Now, Saved, Speed
from supervisor.reading.brief import brief
from supervisor.reading.events_file import Event
from tests.support.runs_on_disk import Writer
from tests.support.waiting import until
from trainer.rundir.codes import Phase
from trainer.rundir.records.beats import Beat, Source


def now(state: str = "running", next_s: float | None = None, **numbers: Any) -> Now:
    events = [{"msg": "standby_ready", "mono": 1.0}, *[{"msg": "relaunch_scheduled", "mono": 2.0}] * 2]
    return Now(tell(events), state, (), Numbers(**numbers), {}, {}, Saved(120, time.time() - 30.0), next_s)


FULL = {"step": 140, "total": 1000, "step_ms": 120.4, "eta_s": 103.2, "loss": 2.31449}


LONG = (
    "running  step 140 of 1000, 14 %  120 ms/step  1:44 left  loss 2.3145  2 restarts  saved 120, 30 s ago  "
    "standby ready"
)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (None, LONG),
        (90, "running  140/1000 14 %  120 ms/step  1:44 left  loss 2.3145  2 restarts  saved 120"),
        (79, "running  140/1000 14 %  120 ms/step  1:44 left  loss 2.3145  2 restarts"),
        (39, "running  140/1000 14 %  1:44 left"),
        (10, "running"),
    ],
)  # fmt: skip
def test_the_line_fits(width: int | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least important is left out first."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert line(now(**FULL), width) == shown


def test_the_line_of_a_run_that_makes_no_step() -> None:
    """No speed, and no time to go: they would be those of a moment ago."""
    said = line(now("starting", doing="importing torch for 12 s"), 79)
    assert said.startswith("starting  importing torch for 12 s  2 restarts  saved 120")
    assert line(now("running", doing="rank 0 evaluating for 3 min", **FULL), 60) == (
        "running  rank 0 evaluating for 3 min  140/1000 14 %"
    )
    assert "next attempt in 14 s" in line(now("backoff", 14.2, step=3), 60)


@pytest.mark.parametrize("text", ["a few words of some length", "unbreakablyverylongword", "日本語 の 行 です よ ね"])
def test_a_cut_is_between_words(text: str) -> None:
    for width in range(2, 30):
        short = cut(text, width)
        assert short == text or short.endswith("…")
        kept = short.removesuffix("…").rstrip()
        assert not kept or " " not in text[: len(kept) + 1] or text.startswith(f"{kept} ") or short == text
    assert [cut(text, width) for width in (-1, 0, 1)] == ["", "", "…"]


def test_every_event_has_words() -> None:
    """Also with nothing in it, or with anything."""
    for name in EventName:
        for fields in ({}, {"step": "x", "delay_s": None, "pids": 3, "ts": 5, "text": "it is \x1b[31mso"}):
            assert "\x1b" not in brief(Event(b"", {"msg": name.value, **fields}))
    event = Event(b"", {"msg": "checkpoint_committed", "step": 40, "ts": "2026-11-24T02:00:07Z"})
    assert brief(event).endswith(":00:07 checkpoint of step 40")


def beat(rank: int, step: int, at: float) -> Beat:
    return Beat(rank, 1, step, Phase.TRAIN, at, Source.HOOK, 0, 0, 0.0)


def test_the_speed_is_the_median_of_looks() -> None:
    """Of the slowest rank in each look; a pause changes nothing, nor does a new attempt before it has a step."""
    speed = Speed()
    for look in range(10):
        speed.see(0, [beat(0, 1 + 2 * look, 1.0 * look), beat(1, 1 + 2 * look, 1.1 * look)])
    speed.see(0, [beat(0, 20, 500.0), beat(1, 20, 500.0)])
    assert speed.pace().typical == pytest.approx(0.55) and speed.paces[0].typical == pytest.approx(0.5)
    speed.see(1, [beat(0, 3, 900.0)])
    assert speed.pace().typical == pytest.approx(0.55) and speed.paces == {}


class Slow(io.RawIOBase):
    """A terminal that is written to for so long that `meanwhile` comes."""

    def __init__(self, meanwhile: list[Callable[[], object]]) -> None:
        self.got, self._meanwhile = b"", meanwhile

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.got += bytes(data)
        while self._meanwhile:
            self._meanwhile.pop()()
        return len(data)


def test_a_signal_in_the_middle_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z while something is said: what its handler says comes after it."""
    said = console.Console(Writer(tmp_path / "run").run, quiet=False, grace=45.0)
    slow = Slow([lambda: said.say("once more"), lambda: said.say("not paused")])
    with monkeypatch.context() as patch, io.TextIOWrapper(io.BufferedWriter(slow)) as out:
        patch.setattr(sys, "stderr", out)
        said.say("the run")
    assert slow.got == b"the run\nnot paused\nonce more\n"


def test_off_a_terminal_the_line_comes_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_FIRST", 0.0)
    monkeypatch.setattr(console, "_SELDOM", 0.0)
    w = Writer(tmp_path / "run")
    w.event("run_started", 0, attempt=-1)
    w.event("attempt_started", 1, wanted_mono=0.5)
    w.event("first_step", 2, step=7, from_step=6, at_mono=2)
    w.event("verdict", 3, cause="killed", reason="killed", step=40)
    # Not what pytest has of it: whatever the console's thread writes while pytest empties that is lost.
    said = tmp_path / "said"

    def told() -> bool:
        return "recovering  ending the attempt for" in said.read_text() and "step 40\n" in said.read_text()

    with said.open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", out)
        with console.Console(w.run, quiet=False, grace=45.0):
            until(told)
    assert b"\r" not in said.read_bytes()
