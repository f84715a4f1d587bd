"""Files and folders are old or new, never between: at every call where a process can die. Power cuts:
test_power_cuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disks import CrashingDisk, Cut, FullDisk
from trainer.rundir.files.durable import append_line, mend_tail, replace_file


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


def test_replace_file_on_a_full_disk(tmp_path: Path) -> None:
    """No space at any call: an OSError, the old content, and no temporary left."""
    for full in range(3):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new", FullDisk(full))

        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


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
