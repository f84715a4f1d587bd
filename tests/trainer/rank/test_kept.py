"""What a script does not load is there under a second name, whatever it does with the first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.rank.journal import beside
from trainer.rank.journal.kept import keep, keep_all
from trainer.rundir.variables import PLAIN_SAVES, RUN_DIR


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RUN_DIR, str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "kept"


def test_a_file_is_kept_and_replaced_beside(kept: Path, tmp_path: Path) -> None:
    """Its two names do not count as the script's: it is still replaced by one rename, also after a kill before that."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    assert keep(path, 60) == keep(path, 60) == kept / "step-00000060" / "last.pt"

    for content in (b"new", b"newer"):
        place = beside.prepare(str(path), "tag")
        assert isinstance(place, beside.Beside)
        Path(place.new).write_bytes(content)
        assert place.commit() == ""
        assert path.read_bytes() == content
    assert (kept / "step-00000060" / "last.pt").read_bytes() == b"old"
    os.link(path, tmp_path / "the script's own")
    assert isinstance(beside.prepare(str(path), "tag"), beside.Unsafe)


def test_one_generation_of_the_furthest_step(kept: Path, tmp_path: Path) -> None:
    """Starting over again keeps nothing of an earlier step; a later one takes its place."""
    path = tmp_path / "last.pt"
    for step, there in ((60, [60]), (20, [60]), (-1, [60]), (80, [80])):
        path.unlink(missing_ok=True)
        path.write_bytes(b"%d" % step)
        assert (keep(path, step) is None) is (step not in there)
        assert [folder.name for folder in kept.iterdir()] == [f"step-{number:08d}" for number in there]
    assert (kept / "step-00000080" / "last.pt").read_bytes() == b"80"


def test_what_lies_beside_is_kept_too(kept: Path, tmp_path: Path) -> None:
    """A best model, and another file of the same name; but not where the newest itself is not kept."""
    paths = [tmp_path / name for name in ("last.pt", "best.pt", "ema/last.pt")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    newest, *others = map(str, paths)
    assert keep_all(newest, [*others, str(tmp_path / "gone")], 60) == kept / "step-00000060" / "last.pt"
    found = {str(path.relative_to(kept)): path for path in kept.rglob("*.pt")}
    assert {*found} == {f"step-00000060/{name}" for name in ("last.pt", "best.pt", "ema/last.pt")}
    assert all(found[f"step-00000060/{path.relative_to(tmp_path)}"].samefile(path) for path in paths)
    assert keep_all(newest, others, 40) is None
    assert not (kept / "step-00000040").exists()


def test_another_rank_removes_the_older_generation_meanwhile(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a look for names: the save is written beside, as ever."""
    path, older, scan = tmp_path / "last.pt", kept / "step-00000020", os.scandir
    path.write_bytes(b"old")
    keep(path, 60)
    older.mkdir()

    def scandir(folder: Any = ".") -> Any:
        if str(folder) == str(older) and older.exists():
            older.rmdir()
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    place = beside.prepare(str(path), "tag")
    assert isinstance(place, beside.Beside) and not older.exists()
    place.abort()


def test_a_folder(kept: Path, tmp_path: Path) -> None:
    """With all its files; it is there after the script has removed its own."""
    folder = tmp_path / "out" / "checkpoint-5"
    (folder / "deep").mkdir(parents=True)
    for name in ("model.bin", "deep/rng.pth"):
        (folder / name).write_text(name)
    assert keep(folder, 5) == kept / "step-00000005" / "checkpoint-5"
    place = beside.prepare(str(folder / "model.bin"), "tag")
    assert isinstance(place, beside.Beside)
    place.abort()
    for name in ("model.bin", "deep/rng.pth"):
        (folder / name).unlink()
        assert (kept / "step-00000005" / "checkpoint-5" / name).read_text() == name


def test_on_another_file_system_it_is_beside(kept: Path) -> None:
    """A link cannot lead there; the second name is in a hidden folder beside the save."""
    shm = Path("/dev/shm") / f"kept-{os.getpid()}"
    if not shm.parent.is_dir() or shm.parent.stat().st_dev == kept.parent.stat().st_dev:
        pytest.skip("there is no other file system here")
    shm.mkdir()
    try:
        (shm / "last.pt").write_bytes(b"old")
        assert keep(shm / "last.pt", 7) == shm / ".kept" / "step-00000007" / "last.pt"
        place = beside.prepare(str(shm / "last.pt"), "tag")
        assert isinstance(place, beside.Beside)
        place.abort()
        assert not kept.exists()
    finally:
        for path in sorted(shm.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        shm.rmdir()


def test_what_is_written_over_in_place(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second name would get the new content too: nobody is told that the old one is kept."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    monkeypatch.setenv(PLAIN_SAVES, "1")
    assert keep(path, 60) is None
    monkeypatch.delenv(PLAIN_SAVES)
    os.link(path, tmp_path / "the script's own")
    assert keep(path, 60) is None and not kept.exists()


def test_what_cannot_be_kept(kept: Path, tmp_path: Path) -> None:
    """A save that is gone, an empty folder, a run that cannot be written: nothing is told, and nothing fails."""
    assert keep(tmp_path / "gone.pt", 3) is None
    (tmp_path / "empty").mkdir()
    assert keep(tmp_path / "empty", 3) is None
    (tmp_path / "last.pt").write_bytes(b"old")
    kept.write_bytes(b"no folder")
    assert keep(tmp_path / "last.pt", 3) is None
