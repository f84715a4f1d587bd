"""Files and folders are old or new, never between: at every call where a process can die, and at every power cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import CrashingDisk, Cut, FullDisk, LossyDisk
from trainer.rundir.durable import append_line, mend_tail, replace_file


def _calls(tmp_path: Path) -> int:
    disk = CrashingDisk()
    replace_file(tmp_path / "count", b"new", disk)
    return disk.calls


def _sweep_power(tmp_path: Path, make: Callable[[Path, int | None], LossyDisk]) -> None:
    for cut in [*range(_calls(tmp_path) + 2), None]:
        root = tmp_path / f"cut-{cut}"
        root.mkdir()
        (root / "file").write_bytes(b"old content")
        disk = make(root, cut)
        try:
            replace_file(root / "file", b"new content", disk)
            allowed = [b"new content"]
        except Cut:
            allowed = [b"old content", b"new content"]
        for state in disk.survivors(tmp_path / f"after-{cut}"):
            path = state / "file"
            assert path.exists(), f"cut {cut}: there is no file"
            assert path.read_bytes() in allowed, f"cut {cut}"


def test_replace_file_at_every_death(tmp_path: Path) -> None:
    """A process that dies at any call leaves the old content or the new."""
    for cut in range(_calls(tmp_path)):
        path = tmp_path / f"file-{cut}"
        path.write_bytes(b"old")
        with pytest.raises(Cut):
            replace_file(path, b"new", CrashingDisk(cut))

        assert path.read_bytes() in (b"old", b"new")


def test_replace_file_at_every_power_cut(tmp_path: Path) -> None:
    """Whatever was not synced is lost, kept or torn: the content is old or new, and new once the call has returned."""
    _sweep_power(tmp_path, LossyDisk)


class _NoFileSync(LossyDisk):
    def fsync(self, fd: int, path: Path) -> None:
        pass


class _NoDirSync(LossyDisk):
    def sync_dir(self, path: Path) -> None:
        pass


class _RemoveThenRename(LossyDisk):
    def rename(self, source: Path, target: Path) -> None:
        if target.exists():
            self.remove(target)
        super().rename(source, target)


@pytest.mark.parametrize("wrong", [_NoFileSync, _NoDirSync, _RemoveThenRename])
def test_wrong_ways_are_convicted(tmp_path: Path, wrong: type[LossyDisk]) -> None:
    """The simulated power cut tells the right order of calls from one that only looks right."""
    with pytest.raises(AssertionError):
        _sweep_power(tmp_path, wrong)


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
