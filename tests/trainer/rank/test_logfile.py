"""Log files: lines whatever the chunks, text that cannot drive a terminal, and every way a file is rotated."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.reading import logfile
from supervisor.reading.lines import CAP, End, Line, LineSplitter, RawSplitter
from supervisor.reading.logfile import LogFollower, drain, last_lines, last_matching
from supervisor.reading.plain import decode, plain

PIECES = st.sampled_from([b"\n", b"\r", b"\r\n", b"step 1", b"\xff\xfe", b"", b" 50%", b"a" * CAP, b"b" * (CAP - 1)])
STREAM = st.lists(PIECES, max_size=30).map(b"".join)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at `cuts`, taken modulo its length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@settings(deadline=None)
@given(
    STREAM,
    st.lists(st.integers(min_value=0, max_value=10**6), max_size=20),
    st.sampled_from([LineSplitter, RawSplitter]),
)
def test_any_chunking_gives_the_same_lines(data: bytes, cuts: list[int], kind: type[LineSplitter]) -> None:
    """Lines depend on the bytes, not on the reads in which they arrived."""
    whole, pieces = kind(), kind()
    expected = whole.feed(data) + whole.flush()
    actual = [line for chunk in chunks(data, cuts) for line in pieces.feed(chunk)] + pieces.flush()
    assert actual == expected


@settings(deadline=None)
@given(STREAM)
def test_raw_lines_joined_are_the_bytes(data: bytes) -> None:
    """Raw output changes no byte, and no piece of it is longer than the cap and a newline."""
    splitter = RawSplitter()
    lines = splitter.feed(data) + splitter.flush()
    assert b"".join(line.data for line in lines) == data
    assert all(len(line.data) <= CAP for line in lines)


@settings(deadline=None)
@given(STREAM)
def test_lines_hold_no_line_end_and_are_capped(data: bytes) -> None:
    """A line is one line, and an endless one is cut into marked pieces."""
    splitter = LineSplitter()
    lines = splitter.feed(data) + splitter.flush()
    assert not [line for line in lines if b"\n" in line.data or b"\r" in line.data or len(line.data) > CAP]
    assert all((len(line.data) == CAP) == (line.end is End.CUT) for line in lines)


def test_a_progress_bar_becomes_its_last_state() -> None:
    """Ten thousand updates between two newlines are one line."""
    bar = b"".join(b"\r%5d/10000" % n for n in range(1, 10001))
    assert LineSplitter().feed(b"before" + bar + b"\nafter\n") == [Line(b"10000/10000"), Line(b"after")]


def test_windows_line_ends_are_line_ends() -> None:
    """A carriage return before the newline hides nothing."""
    assert LineSplitter().feed(b"one\r\n\r\ntwo\r\r\n") == [Line(b"one"), Line(b""), Line(b"two")]


def test_the_newline_of_a_flushed_line_is_no_second_line() -> None:
    """A prompt shown without its newline is not followed by an empty line."""
    splitter = LineSplitter()
    assert [splitter.feed(b"ready? "), splitter.flush(), splitter.feed(b"\nyes\n")] == [
        [],
        [Line(b"ready? ", End.OPEN)],
        [Line(b"yes")],
    ]


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=[]))
    | st.text(st.sampled_from("\x1b[]0;m\x07\x9b\x9d\x85\u202e\u2028a\t\0\ud800"))
)
def test_no_control_character_survives(text: str) -> None:
    """Whatever was logged, nothing that a terminal obeys is left, except tab, and it can be encoded."""
    shown = plain(text)
    assert not [c for c in shown if c != "\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    shown.encode()


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_can_be_shown(data: bytes) -> None:
    """Bytes that are no text are written out."""
    assert not [c for c in decode(data) if c != "\t" and unicodedata.category(c) == "Cc"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x1b[1;31mloss\x1b[0m 2.5", "loss 2.5"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1b\x1b[31m[2J", "\\x1b[2J"),
        (b"bell\x07 \xff", "bell\\x07 \\xff"),
        ("caf\u00e9 \u202egnp.exe".encode(), "caf\u00e9 \\u202egnp.exe"),
        (b"\0" * 4096 + b"after a hole", "[4096 NUL bytes]after a hole"),
        (b"a\tb", "a\tb"),
    ],
)
def test_escapes_go_and_the_rest_is_written_out(data: bytes, expected: str) -> None:
    """Colours vanish, other controls stay visible as text, tabs and letters stay."""
    assert decode(data) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"", b"x", b"step 1", b"long" * 200]), max_size=40), st.integers(0, 50), st.booleans())
def test_last_lines_are_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int, ended: bool
) -> None:
    """The offset found from the end is where the last lines begin."""
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    path = tmp_path_factory.getbasetemp() / "last_lines.log"
    path.write_bytes(data)
    offset, found = last_lines(path, count)
    every = data.splitlines(keepends=True)
    assert (data[offset:], found) == (b"".join(every[len(every) - min(count, len(every)) :]), min(count, len(every)))


class Counting:
    """os.pread that counts the bytes it gives."""

    def __init__(self) -> None:
        self.read = 0
        self._pread = os.pread

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        data = self._pread(fd, size, offset)
        self.read += len(data)
        return data


@pytest.mark.parametrize("ending", [b"", b"".join(b"line %d\n" % n for n in range(100))], ids=["a hole", "lines"])
def test_a_huge_file_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes) -> None:
    """The last 50 lines of a 2 GB file cost less than 1 MB of reading, even if it is one endless line."""
    path = tmp_path / "rank0.log"
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" * bool(ending) + ending)
    counting = Counting()
    monkeypatch.setattr(logfile.os, "pread", counting)
    offset, _ = last_lines(path, 50)
    follower = LogFollower(path, LineSplitter(), offset)
    lines = list(drain(follower)) + follower.finish()
    assert counting.read < 10**6
    assert ending == b"" or lines == [Line(b"line %d" % n) for n in range(50, 100)]


def test_last_matching_reads_back_until_it_has_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines that match are found however far back they are, and what comes later is followed."""
    monkeypatch.setattr(logfile, "BLOCK", 64)
    path = tmp_path / "rank0.log"
    path.write_bytes(b"".join(b"error %d\n" % n for n in range(5)) + b"fine\n" * 5000)
    follower, kept = last_matching(path, 3, LineSplitter, lambda line: b"error" in line.data)
    with path.open("ab") as file:
        file.write(b"later\n")
    assert [kept, follower.poll(0.0)] == [[Line(b"error %d" % n) for n in (2, 3, 4)], [Line(b"later")]]
    follower.finish()


def every(follower: LogFollower, now: float = 0.0, polls: int = 3) -> list[bytes]:
    return [line.data for n in range(polls) for line in follower.poll(now + n / 100)]


def test_a_file_that_comes_later_is_followed(tmp_path: Path) -> None:
    """A follower may be there before its file."""
    path = tmp_path / "rank0.log"
    follower = LogFollower(path, LineSplitter())
    assert every(follower) == []
    path.write_bytes(b"one\n")
    assert every(follower) == [b"one"]
    follower.finish()


def test_rotation_by_rename_loses_nothing(tmp_path: Path) -> None:
    """The old file is read to its end, also what is written into it after the rename, then the new one."""
    path = tmp_path / "rank0.log"
    path.write_bytes(b"one\n")
    follower = LogFollower(path, LineSplitter())
    seen = every(follower)
    with path.open("ab") as old:
        path.rename(tmp_path / "rank0.log.1")
        path.write_bytes(b"three\n")
        seen += [line.data for line in follower.poll(1.0)]
        old.write(b"two\nunfinished")
        old.flush()
        seen += every(follower, 2.0)
    assert seen == [b"one", b"two", b"unfinished", b"three"]
    follower.finish()


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"one\n", b"two\nthr", b"ee\n", b"\r50%", b"\n", None]), max_size=30))
def test_no_line_is_lost_or_repeated(tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | None]) -> None:
    """Whatever is appended between two polls, and however often the file is renamed away, each line comes once."""
    folder = tmp_path_factory.mktemp("rotated")
    path = folder / "rank0.log"
    path.touch()
    follower = LogFollower(path, LineSplitter())
    files, seen = [b""], []
    for number, step in enumerate(steps):
        if step is None:
            path.rename(folder / f"rank0.log.{number}")
            files.append(b"")
        with path.open("ab") as file:
            file.write(step or b"")
        files[-1] += step or b""
        seen += every(follower)
    seen += [line.data for line in follower.finish()]
    splitters = [(LineSplitter(), data) for data in files]
    assert seen == [line.data for one, data in splitters for line in one.feed(data) + one.flush()]


def test_rotation_by_truncation_begins_again(tmp_path: Path) -> None:
    """After copytruncate the file is read from its start."""
    path = tmp_path / "rank0.log"
    path.write_bytes(b"a long first line\n")
    follower = LogFollower(path, LineSplitter())
    seen = every(follower)
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(b"new\n")
    assert seen + every(follower) == [b"a long first line", b"new"]
    follower.finish()


def test_a_deleted_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Deletion hurts no one: what was open is finished, what is created anew is followed."""
    path = tmp_path / "rank0.log"
    path.write_bytes(b"one\n")
    follower = LogFollower(path, LineSplitter())
    seen = every(follower)
    with path.open("ab") as file:
        path.unlink()
        file.write(b"two\n")
    seen += every(follower)
    path.write_bytes(b"three\n")
    assert seen + every(follower) == [b"one", b"two", b"three"]
    follower.finish()


def test_a_line_without_newline_is_shown_when_idle(tmp_path: Path) -> None:
    """Half a line waits a second for its rest, then it is shown as it is."""
    path = tmp_path / "rank0.log"
    path.write_bytes(b"ready? ")
    follower = LogFollower(path, LineSplitter())
    assert [follower.poll(10.0), follower.poll(10.5), follower.poll(11.1), follower.poll(13.0)] == [
        [],
        [],
        [Line(b"ready? ", End.OPEN)],
        [],
    ]
    follower.finish()


def test_a_live_bar_is_shown_once_a_second(tmp_path: Path) -> None:
    """A bar that is redrawn a hundred times a second does not flood, and its end is shown."""
    path = tmp_path / "rank0.log"
    path.touch()
    follower = LogFollower(path, LineSplitter())
    seen = []
    with path.open("ab", buffering=0) as file:
        for n in range(500):
            file.write(b"\r%d/500" % (n + 1))
            seen += [line.data for line in follower.poll(n / 100)]
        file.write(b"\n")
    seen += [line.data for line in follower.poll(5.0)]
    assert len(seen) <= 6
    assert seen[-1] == b"500/500"
    follower.finish()
