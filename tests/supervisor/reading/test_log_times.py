"""When the lines of logs were written, though nobody stands between a rank and its log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from supervisor.reading import log_times
from supervisor.reading.choice import Choice
from supervisor.reading.follow import LogRecord, Record, RunFollower
from supervisor.reading.log_times import LAUNCHER, Times, TimesWriter
from supervisor.reading.plain import decode
from tests.support.runs_on_disk import EPOCH, Writer


class Noted:
    """A run whose supervisor looks when it is told to, at a time that it is told."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writer, self.patch = Writer(path), monkeypatch
        self.writer.event("attempt_started", 0.0)
        self.writer.run.attempt(0).path.mkdir(parents=True)
        self.times = TimesWriter(self.writer.run.attempt(0).times)

    def look(self, at: float) -> None:
        self.patch.setattr(log_times.time, "time", lambda: EPOCH + at)
        paths = {rank: self.writer.run.attempt(0).rank_log(rank) for rank in (0, 1)}
        self.times.note({rank: path.stat().st_size for rank, path in paths.items() if path.exists()}, at)

    def says(self, text: str, rank: int, at: float | None) -> None:
        """The line is written; the supervisor sees it at that time (None: it is dead)."""
        self.writer.log(f"{text}\n".encode(), rank=rank, at=100.0)
        if at is not None:
            self.look(at)

    def shown(self, choice: Choice, back: int | None = None) -> list[str]:
        follower = RunFollower(self.writer.run, lambda: True, choice, back=back)
        return list(map(_said, [*follower.poll(), *follower.finish()]))


def _said(record: Record) -> str:
    if isinstance(record, LogRecord):
        at = "?" if record.at is None else f"{record.at - EPOCH:g}"
        return f"{decode(record.line.data)} {at}"
    return record.event.name


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted(tmp_path / "run", monkeypatch)
    noted.says("one", 0, 1.0)
    noted.says("two", 1, 2.0)
    noted.writer.event("first_step", 2.5)
    noted.says("three", 0, 3.0)
    # Between two looks: the next known time is that of both.
    noted.says("four", 1, None)
    noted.says("five", 1, 5.0)
    noted.says("six", 0, None)
    noted.times.close()
    return noted


def test_the_past_is_in_the_order_of_time(noted: Noted) -> None:
    """Over ranks and events. What nobody has noted has the time of the last write."""
    first = ["attempt_started", "one 1", "two 2", "first_step", "three 3", "four 5", "five 5"]
    assert noted.shown(Choice()) == [*first, "six ?"]
    assert noted.shown(Choice(events=False), back=1) == ["five 5", "six ?"]
    # The last supervisor was killed in the middle of a record, and another one goes on.
    times = noted.writer.run.attempt(0).times
    times.write_bytes(times.read_bytes()[:-3])
    noted.times = TimesWriter(times)
    noted.look(7.0)
    noted.times.close()
    assert noted.shown(Choice()) == [*first[:5], "six 7", "four 7", "five 7"]


@pytest.mark.parametrize(
    ("since", "until", "shown"),
    [
        (2.5, None, ["three 3", "four 5", "five 5", "six ?"]),
        (None, 2.0, ["one 1", "two 2", "six ?"]),
        (2.0, 3.0, ["two 2", "three 3", "six ?"]),
        (101.0, None, []),
    ],
)
def test_since_and_until(noted: Noted, since: float | None, until: float | None, shown: list[str]) -> None:
    """A line whose time nobody has noted is shown if the log was written since then."""
    moments = [None if at is None else EPOCH + at for at in (since, until)]
    assert noted.shown(Choice(since=moments[0], until=moments[1], events=False)) == shown


def test_since_reads_no_more_than_it_must(noted: Noted) -> None:
    """A log of which only the end is new is read from there, from the begin of a line."""
    noted.writer.log(b"x" * 300_000 + b"\n" + b"part", rank=0, at=100.0)
    noted.look(20.0)
    noted.writer.log(b" of a line\nlast\n", rank=0, at=100.0)
    noted.look(30.0)
    assert noted.shown(Choice(since=EPOCH + 25.0, rank=0, events=False)) == ["part of a line 30", "last 30"]


def test_a_truncated_log_and_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the log now has the times of what is in it now, and no line is older than the one before it."""
    writer, reader = TimesWriter(tmp_path / "times"), Times(tmp_path / "times")
    reader.refresh()
    clock = 1000.0
    monkeypatch.setattr(log_times.time, "time", lambda: clock)
    writer.note({0: 100, LAUNCHER: 5}, 0.0)
    clock = 990.0
    writer.note({0: 200}, 0.0)
    reader.refresh()
    assert [reader.time(0, end) for end in (50, 150, 201)] == [1000.0, 1000.0, None]
    assert (reader.time(None, 5), reader.time(3, 5)) == (1000.0, None)
    clock = 1200.0
    writer.note({0: 50}, 0.0)
    reader.refresh()
    assert (reader.time(0, 50), reader.before(0, 1199.0), reader.before(0, 1201.0)) == (1200.0, 0, 50)
    writer.close()


def test_the_file_may_hold_anything(tmp_path: Path) -> None:
    reader = Times(tmp_path / "times")
    (tmp_path / "times").write_bytes(bytes(range(256)) * 5 + b"odd")
    reader.refresh()
    for rank in (None, 0, 5, 65534):
        assert (reader.time(rank, 10) or 0.0) >= 0.0 and reader.before(rank, time.time()) >= 0
