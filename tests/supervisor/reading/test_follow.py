"""A follower of a run sees every line once, in order, over all attempts, and ends when the run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import Refusal
from supervisor.reading.choice import EVERYTHING, Choice, parse_since
from supervisor.reading.follow import POLL, EventRecord, LogRecord, Record, RunFollower, pump
from supervisor.reading.render import TextRenderer
from tests.support.runs_on_disk import EPOCH, Writer, recovered_run


class World:
    """A follower with a clock of its own, of a run that is held until somebody says otherwise."""

    def __init__(self, writer: Writer, choice: Choice = EVERYTHING, back: int | None = None) -> None:
        self.now = 1000.0
        self.held = True
        self.follower = RunFollower(
            writer.run, lambda: self.held, choice, back=back, clock=lambda: self.now, wall=lambda: EPOCH
        )

    def poll(self) -> list[str]:
        """What one poll gives, in short; the clock goes on as if the loop had slept."""
        found = [short(record) for record in self.follower.poll()]
        self.now += POLL
        return found

    def polls(self, seconds: float) -> list[str]:
        end = self.now + seconds
        found: list[str] = []
        while self.now < end:
            found += self.poll()
        return found


def short(record: Record) -> str:
    if isinstance(record, EventRecord):
        return f"a{record.attempt} {record.event.name}"
    tag = "L" if record.rank is None else f"r{record.rank}"
    return f"a{record.attempt} {tag} {record.line.data.decode()}"


def everything(writer: Writer, choice: Choice = EVERYTHING, back: int | None = None) -> list[str]:
    """What the run's past is, in short."""
    world = World(writer, choice, back)
    return world.poll() + [short(record) for record in world.follower.finish()]


def test_the_past_is_told_attempt_by_attempt(tmp_path: Path) -> None:
    """Events stand before the logs that were written after them, and no attempt mixes with another."""
    assert everything(recovered_run(tmp_path / "run"), back=2) == [
        "a0 L starting ranks",
        "a0 r1 step 41",
        "a1 resumed",
        "a1 r0 step 42",
        "a1 r0 step 43",
        "a1 r1 step 42",
        "a1 run_ended",
    ]


def test_everything_is_given_once(tmp_path: Path) -> None:
    """All of a run's past is all its lines and all its events."""
    writer = recovered_run(tmp_path / "run")
    told = everything(writer)
    lines = [line for line in told if " step " in line or " L " in line]
    assert (len(told), len(lines)) == (writer.seq + 47, 47)
    assert told.index("a0 verdict") == told.index("a0 r0 step 41") + 1


def test_a_restart_is_followed_into_the_next_attempt(tmp_path: Path) -> None:
    """New attempts and ranks are picked up as they appear; the old one's last lines are not lost."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    writer.log(b"one\n")
    world = World(writer)
    seen = [world.poll()]
    writer.log(b"two\n")
    writer.log(b"Traceback", rank=1)
    writer.event("verdict", level="error", cause="exception", rank=1)
    writer.event("attempt_started", attempt=1)
    writer.log(b"three\n", attempt=1)
    seen.append(world.poll())
    writer.event("run_ended", attempt=1, exit_code=0)
    seen.append(world.polls(3))
    assert seen == [
        ["a0 attempt_started", "a0 r0 one"],
        ["a0 r0 two", "a0 verdict", "a1 attempt_started", "a1 r0 three"],
        ["a1 run_ended", "a0 r1 Traceback"],
    ]
    assert world.follower.over


def test_a_standby_is_shown_when_it_takes_over(tmp_path: Path) -> None:
    """What the parked ranks of the next attempt log is not shown before that attempt has started."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    writer.log(b"parked\n", attempt=1)
    world = World(writer)
    seen = [world.polls(1)]
    writer.event("attempt_started", attempt=1)
    seen.append(world.poll())
    assert seen == [["a0 attempt_started"], ["a1 attempt_started", "a1 r0 parked"]]


def test_the_end_waits_for_the_logs(tmp_path: Path) -> None:
    """A run that has ended is over for the follower when the last byte of its logs was given."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    world = World(writer)
    world.poll()
    text = b"x" * 99 + b"\n"
    writer.log(text * 50_000)
    writer.event("run_ended", exit_code=0)
    first = world.poll()
    assert not world.follower.over and world.follower.behind
    rest = world.polls(2)
    assert world.follower.over
    assert sum(line.startswith("a0 r0") for line in first + rest) == 50_000


def test_a_run_that_nobody_holds_is_lost(tmp_path: Path) -> None:
    """Without a word of its end, a run is over when its lock is free at two looks a second apart."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    world = World(writer)
    world.polls(5)
    held = (world.follower.over, world.follower.lost)
    world.held = False
    world.poll()
    first = world.follower.over
    world.polls(3)
    assert (held, first, world.follower.over, world.follower.lost) == ((False, False), False, True, True)


def test_a_resumed_run_is_not_over(tmp_path: Path) -> None:
    """An end that another start follows is no end."""
    writer = recovered_run(tmp_path / "run")
    writer.event("run_started", 30, attempt=1)
    world = World(writer, back=0)
    assert world.polls(3) == []
    writer.event("attempt_started", 31, attempt=2)
    assert (world.poll(), world.follower.over) == (["a2 attempt_started"], False)


def test_pump_ends_with_the_run(tmp_path: Path) -> None:
    """Following an ended run writes all of it and returns, without waiting."""
    written: list[Record] = []
    writer = recovered_run(tmp_path / "run")
    follower = RunFollower(writer.run, lambda: False)
    pump(follower, written.append, lambda seconds: pytest.fail("waited"))
    assert len(written) == writer.seq + 47


def test_back_zero_shows_only_what_is_new(tmp_path: Path) -> None:
    """With no past asked for, the first line is the first that comes."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    writer.log(b"old\n")
    world = World(writer, back=0)
    seen = [world.poll()]
    writer.log(b"new\n")
    assert [*seen, world.poll()] == [[], ["a0 r0 new"]]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(attempt=-1, rank=1), ["a1 attempt_started", "a1 resumed", "a1 r1 step 42", "a1 run_ended"]),
        (Choice(attempt=0, rank=1, events=False), ["a0 r1 step 41"]),
        (Choice(names=frozenset({"verdict"}), logs=False), ["a0 verdict"]),
        (Choice(level="warning", logs=False), ["a0 verdict", "a0 relaunch_scheduled"]),
        (Choice(since=EPOCH + 15), ["a1 r0 step 42", "a1 r0 step 43", "a1 r1 step 42", "a1 run_ended"]),
    ],
)
def test_choices(tmp_path: Path, choice: Choice, expected: list[str]) -> None:
    """Each filter lets through what it says."""
    assert everything(recovered_run(tmp_path / "run"), choice) == expected


def test_grep_counts_back_over_attempts(tmp_path: Path) -> None:
    """The last lines that match are found in whichever attempt they are, for logs and for events."""
    import re

    writer = recovered_run(tmp_path / "run")
    choice = replace(EVERYTHING, grep=re.compile("step 4[02]|SIGKILL"))
    assert everything(writer, choice, back=2) == ["a0 r0 step 40", "a0 verdict", "a1 r0 step 42", "a1 r1 step 42"]


@pytest.mark.parametrize("attempt", [2, -3])
def test_an_attempt_that_is_not_there_is_refused(tmp_path: Path, attempt: int) -> None:
    """A number without an attempt is an error that says which there are."""
    with pytest.raises(Refusal, match="there are 0 to 1"):
        everything(recovered_run(tmp_path / "run"), Choice(attempt=attempt))


def test_separators_say_why_and_where(tmp_path: Path) -> None:
    """Between two attempts stands what ended the old one and where the new one went on."""
    follower = RunFollower(recovered_run(tmp_path / "run").run, lambda: False)
    render = TextRenderer(follower.restarts)
    text = b"".join(map(render, follower.poll())).decode().splitlines()
    assert text[0] == "a0 ●  │ 02:00:00.000Z run_started"
    assert [line for line in text if "──" in line] == [
        "── attempt 1 · restart after killed (rank 1, SIGKILL) · resumed at step 40 ──"
    ]
    assert "a0 ●  │ 02:00:11.000Z verdict cause=killed rank=1 signal=SIGKILL step=41 · rank 1 was killed" in text
    assert text[-2:] == ["a1 r1 │ step 42", text[-1]]


def test_since_takes_durations_and_times() -> None:
    """How long ago, with or without a minus, or an ISO time; anything else says what would do."""
    assert [parse_since(text, 10_000.0) for text in ("1h", "-1h", "1970-01-01T01:00:00Z")] == [6400.0, 6400.0, 3600.0]
    with pytest.raises(ValueError, match="how long ago"):
        parse_since("yesterday", 0.0)


def test_lines_without_a_note_say_when_they_were_seen(tmp_path: Path) -> None:
    """A line of the past has no time then; one that came while following has the time at which it was seen."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    writer.log(b"old\n")
    world = World(writer)
    past = list(world.follower.poll())
    writer.log(b"new\n")
    live = list(world.follower.poll())
    assert [r.at for r in [*past, *live] if isinstance(r, LogRecord)] == [None, EPOCH]
