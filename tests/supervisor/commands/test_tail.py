"""tail and events as commands: what goes to stdout, what to stderr, and that reading never harms the run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisor.commands import events, tail
from supervisor.errors import Refusal
from supervisor.reading.events_file import Event
from supervisor.reading.follow import EventRecord, LogRecord
from supervisor.reading.lines import CAP, End, Line
from supervisor.reading.render import TextRenderer, render_json
from supervisor.reading.wording import Restarts
from tests.support.runs_on_disk import EPOCH, Writer, recovered_run
from tests.support.waiting import until

TAIL = [sys.executable, "-c", "from _supervisor.commands.tail import command; command()"]


def run_tail(writer: Writer, *args: str) -> Result:
    return CliRunner().invoke(tail.command, [str(writer.run.path), "--no-follow", *args], catch_exceptions=False)


def run_events(writer: Writer, *args: str) -> Result:
    return CliRunner().invoke(events.command, [str(writer.run.path), *args], catch_exceptions=False)


def test_text_has_a_prefix_and_no_colour(tmp_path: Path) -> None:
    """Where stdout is no terminal, a line says attempt and rank and holds no escape sequence."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    writer.log(b"\x1b[31mred\x1b[0m\x07\n")
    writer.log(b"cold\n", rank=12)
    assert run_tail(writer).stdout.splitlines() == [
        "a0 ●  │ 02:00:00.000Z attempt_started",
        "a0 r0 │ red\\x07",
        "a0 r12 │ cold",
    ]
    assert run_tail(writer, "--no-prefix", "--rank", "12", "--level", "error").stdout == "cold\n"
    with pytest.raises(Refusal, match="gpt-7f3a has no rank 9; it has ranks 0, 12"):
        run_tail(writer, "--rank", "9")
    assert re.fullmatch(r"a0 r0 │ \d{4}-\d\d-\d\d \d\d:00:00 red", _noted(writer, "-t").splitlines()[1])


def _noted(writer: Writer, *args: str) -> str:
    """What tail says once a supervisor has noted that the log of rank 0 is as long as it is."""
    folder = writer.run.attempt(0)
    size = folder.rank_log(0).stat().st_size
    folder.times.write_bytes(struct.pack("<QQ", int(EPOCH * 1000) << 16 | 1, size))
    return run_tail(writer, "--rank", "0", *args).stdout.replace("\\x07", "")


def test_colours_are_only_painted_when_asked_for() -> None:
    """On a terminal ranks differ in colour, and the log's own text still cannot paint."""
    render = TextRenderer(Restarts(), colour=True)
    text = render(LogRecord(0, 1, Line(b"\x1b[5mtext"))).decode()
    assert text == "\x1b[33ma0 r1 │\x1b[0m text\n"


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    """Events come as they stand, a field `source` of their own included; log lines carry attempt, rank and text."""
    writer = Writer(tmp_path / "run")
    event = writer.event("attempt_started", at=-1, source="memory")
    writer.log(b"one\n\xff\xc2\x9b2J\n")
    writer.log(b"two\n", rank=None)
    lines = [json.loads(line) for line in run_tail(writer, "-o", "json").stdout.splitlines()]
    line = {"ts": None, "attempt": 0, "stream": "rank", "rank": 0}
    assert lines == [
        {**event, "stream": "event"},
        {**line, "stream": "launcher", "rank": None, "text": "two"},
        {**line, "text": "one"},
        {**line, "text": "\\xff"},
    ]


def test_a_cut_line_is_marked() -> None:
    """A piece of an endless line says that it goes on."""
    record = LogRecord(0, 0, Line(b"x" * CAP, End.CUT), at=0.0)
    assert json.loads(render_json(record))["end"] == "cut"
    assert TextRenderer(Restarts())(record).decode().endswith("x …\n")


def test_event_text_cannot_drive_the_terminal() -> None:
    """What a fault or a traceback put into an event is written out, and stays one line."""
    event = Event(b"", {"msg": "verdict", "ts": "2026-11-24T02:26:18.690Z", "reason": "a\nb\x1b[2J\u202e", "n": "x y"})
    text = TextRenderer(Restarts())(EventRecord(0, event)).decode()
    assert text == 'a0 ●  │ 02:26:18.690Z verdict n="x y" · a\\x0ab\\u202e\n'


def test_raw_gives_the_bytes_of_the_log(tmp_path: Path) -> None:
    """With one rank, raw output is that rank's files, byte by byte."""
    writer = recovered_run(tmp_path / "run")
    data = b"\x1b[31m\r1%\r2%\n" + bytes(range(256)) + b"y" * (2 * CAP) + b"no newline"
    writer.log(data, attempt=1, rank=1)
    assert run_tail(writer, "-o", "raw", "--rank", "1").stdout_bytes == b"step 41\nstep 42\n" + data


def test_raw_gives_events_only_when_named(tmp_path: Path) -> None:
    """Named events come as they stand in the file, without logs."""
    writer = recovered_run(tmp_path / "run")
    expected = [line for line in writer.run.events.read_text().splitlines() if '"verdict"' in line]
    assert run_tail(writer, "-o", "raw", "--event", "verdict").stdout.splitlines() == expected


def test_last_lines_are_counted_a_source(tmp_path: Path) -> None:
    """-n gives the last lines of each source over all attempts; 0 none, all everything, and so does
    a number that is larger than any."""
    writer = recovered_run(tmp_path / "run")
    counts = [len(run_tail(writer, "-n", n, "-o", "json").stdout.splitlines()) for n in ("0", "1", "all")]
    assert counts == [0, 4, writer.seq + 47]
    for more in ([], ["--grep", "."]):
        everything = run_tail(writer, "-n", "all", *more).stdout
        assert all(run_tail(writer, "-n", "9" * digits, *more).stdout == everything for digits in (19, 20, 5000))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grep", "("], "is not a regular expression"),
        (["--event", "verdct"], "did you mean 'verdict'"),
        (["--since", "yesterday"], "is no moment"),
        (["-n", "few"], "neither a whole number nor 'all'"),
        (["--rank", "first"], "neither a whole number nor 'all'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(tmp_path: Path, args: list[str], message: str) -> None:
    """A bad value is a usage error in one sentence, and nothing is printed."""
    result = run_tail(recovered_run(tmp_path / "run"), *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.replace("\n", " ")


def test_an_attempt_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The group turns the refusal into a line and an exit code."""
    with pytest.raises(Refusal, match="no attempt 7; there are 0 to 1"):
        run_tail(recovered_run(tmp_path / "run"), "--attempt", "7")


def test_events_are_the_lines_of_the_file(tmp_path: Path) -> None:
    """--json gives each event as it stands; what is no event is counted on stderr."""
    writer = recovered_run(tmp_path / "run")
    text = writer.run.events.read_text()
    writer.run.events.write_text("not an event\n" + text + '{"msg":"torn')
    result = run_events(writer, "--json")
    assert result.stdout == text
    assert result.stderr == "1 lines of events.jsonl are not events and were skipped\n"


def test_events_can_be_chosen(tmp_path: Path) -> None:
    """By name or by level, in text with a separator between attempts."""
    writer = recovered_run(tmp_path / "run")
    names = [line.split()[4] for line in run_events(writer, "--level", "warning").stdout.splitlines()]
    assert names == ["verdict", "relaunch_scheduled"]
    assert run_events(writer, "--event", "resumed").stdout.splitlines() == [
        "── attempt 1 · restart after killed (rank 1, SIGKILL) · resumed at step 40 ──",
        "a1 ●  │ 02:00:14.000Z resumed step=40 source=memory",
    ]


@contextmanager
def held(writer: Writer) -> Iterator[int]:
    """The run has a supervisor: a process that holds its lock. Its pid."""
    code = "import fcntl, signal, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); signal.pause()"
    writer.run.lock.touch()
    holder = subprocess.Popen([sys.executable, "-c", code, str(writer.run.lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@contextmanager
def follower(writer: Writer, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`supervise tail` of the run, following into `out`."""
    with out.open("wb") as stdout:
        process = subprocess.Popen([*TAIL, str(writer.run.path)], stdout=stdout, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_ctrl_c_ends_the_reading_not_the_run(tmp_path: Path) -> None:
    """An interrupted follower says that the run goes on, exits 0, and the supervisor lives."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    out = tmp_path / "out"
    with held(writer) as supervisor, follower(writer, out) as process:
        until(lambda: b"attempt_started" in out.read_bytes())
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        os.kill(supervisor, 0)
    assert (process.returncode, error) == (0, b"stopped reading; the run goes on (to stop it: supervise stop)\n")


def test_lines_come_while_the_run_goes_on_and_its_end_ends_the_follower(tmp_path: Path) -> None:
    """New lines are shown as they come; after run_ended the follower exits by itself."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    out = tmp_path / "out"
    with held(writer), follower(writer, out) as process:
        until(lambda: b"attempt_started" in out.read_bytes())
        writer.log(b"live\n")
        until(lambda: b"a0 r0 \xe2\x94\x82 live\n" in out.read_bytes())
        writer.event("run_ended", exit_code=0, state="finished")
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")


def test_a_reader_that_goes_away_ends_the_follower(tmp_path: Path) -> None:
    """`tail | head` ends quietly, also while nothing new is written."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    with held(writer):
        command = [*TAIL, str(writer.run.path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=60), error) == (0, b"")


def test_a_lost_run_ends_the_follower(tmp_path: Path) -> None:
    """Where the supervisor died, the follower says so and what to do."""
    writer = Writer(tmp_path / "run")
    writer.event("attempt_started")
    out = tmp_path / "out"
    with follower(writer, out) as process:
        _, error = process.communicate(timeout=60)
    assert (process.returncode, b"supervise resume" in error) == (0, True)


def test_reading_leaves_the_lock_free(tmp_path: Path) -> None:
    """A query that asked who holds the run holds nothing itself."""
    writer = recovered_run(tmp_path / "run")
    writer.run.lock.touch()
    run_tail(writer)
    with writer.run.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
