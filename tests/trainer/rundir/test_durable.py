"""Files and folders are old or new, never between: at every call where a process can die. Power cuts:
test_power_cuts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.disks import CrashingDisk, Cut, FullDisk
from trainer.rundir.files.durable import DISK, Disk, append_line, mend_tail, replace_file, unfinished
from trainer.rundir.machine import proc
from trainer.rundir.machine.proc import Stat, stat


def _calls(tmp_path: Path) -> int:
    disk = CrashingDisk()
    replace_file(tmp_path / "count", b"new", disk)
    return disk.calls


def test_replace_file_at_every_death(tmp_path: Path) -> None:
    """A process that dies at any call leaves the old content or the new."""
    for cut in range(_calls(tmp_path)):
        path = tmp_path / f"file-{cut}"
        path.write_bytes(b"old")
        with pytest.raises(Cut):
            replace_file(path, b"new", CrashingDisk(cut))

        assert path.read_bytes() in (b"old", b"new")


def test_unfinished_files_of_the_dead(tmp_path: Path) -> None:
    """Who lives is still writing, and needs its file."""
    with subprocess.Popen(["true"]) as dead:
        pass
    ours, theirs = (tmp_path / f".stop.tmp-{pid}-0" for pid in (os.getpid(), dead.pid))
    for path in (ours, theirs, tmp_path / "stop", tmp_path / ".stop.tmp-x-0"):
        path.write_text("")
    (tmp_path / f".step-00000001.tmp-{dead.pid}-1").mkdir()
    assert unfinished(tmp_path) == [theirs]


def test_unfinished_files_of_the_dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process that has only its memory to free is there for a while, and writes no more."""

    def exiting(task: str) -> Stat | None:
        found = stat(task)
        return found._replace(exiting=True) if found else None

    with subprocess.Popen(["sleep", "60"]) as dying:
        path = tmp_path / f".stop.tmp-{dying.pid}-0"
        path.write_text("")
        assert unfinished(tmp_path) == []
        monkeypatch.setattr(proc, "stat", exiting)
        assert unfinished(tmp_path) == [path]
        dying.kill()


def test_replace_file_on_a_full_disk(tmp_path: Path) -> None:
    """No space at any call: an OSError, the old content, and no temporary left."""
    for full in range(3):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new", FullDisk(full))

        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


class _Told(Disk):
    """It notes what is asked of it, and how long the file was then."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, int]] = []

    def write_back(self, fd: int, path: Path, start: int, count: int) -> None:
        super().write_back(fd, path, start, count)
        self.asked.append(("begin", start, count, path.stat().st_size))

    def fsync(self, fd: int, path: Path) -> None:
        super().fsync(fd, path)
        self.asked.append(("sync", 0, 0, path.stat().st_size))


def test_a_large_file_is_on_its_way_before_it_is_synced(tmp_path: Path) -> None:
    """Of each 8 MB that were written the write-back is begun, once, and the whole file is synced at the end."""
    disk, chunk = _Told(), bytes(range(256)) * 12288
    disk.create(tmp_path / "file", (memoryview(chunk)[at : at + (1 << 20)] for _ in range(7) for at in (0, 1 << 20)))

    assert disk.asked == [("begin", 0, 8 << 20, 8 << 20), ("sync", 0, 0, 14 << 20)]
    assert (tmp_path / "file").read_bytes() == chunk[: 2 << 20] * 7


def test_write_back_of_what_has_none(tmp_path: Path) -> None:
    """It is a wish: on a pipe, which the system refuses, nothing happens."""
    read, write = os.pipe()
    try:
        DISK.write_back(write, tmp_path, 0, 4096)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b""), (b"", b""), (b"\n" + b"x" * 200_000, b"\n")],
)
def test_mend_tail_cuts_only_a_torn_line(tmp_path: Path, before: bytes, after: bytes) -> None:
    """What ends with a newline stays; the rest goes, however long."""
    path = tmp_path / "lines"
    path.write_bytes(before)

    assert mend_tail(path) == len(before) - len(after)
    assert path.read_bytes() == after


def test_append_line(tmp_path: Path) -> None:
    """A line more, and those before it as they were."""
    with (tmp_path / "lines").open("ab", buffering=0) as file:
        append_line(file.fileno(), b"one")
        append_line(file.fileno(), b"two")

    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
