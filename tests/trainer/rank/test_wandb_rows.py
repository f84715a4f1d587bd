"""Which rows of a W&B run a relaunch logs, and W&B's own file after a kill."""

from __future__ import annotations

import struct
from pathlib import Path

from trainer.rank.progress import Position
from trainer.rank.trackers.wandb_log import BLOCK, mend
from trainer.rank.trackers.wandb_rows import Places, Rows


def attempt(path: Path, began: int, until: int, have: int, starts: int = 0) -> dict[int, str]:
    """The rows of an attempt that makes steps `began` to `until`, and evaluates after each fourth: W&B's step of
    each."""
    rows, logged, now = Rows(Places(path, begins=have < 0), have, starts), {}, starts
    for done in range(began + 1, until + 1):
        for what in [f"loss {done}", *([f"evaluation {done}"] if done % 4 == 0 else [])]:
            if not rows.again(Position(began, done, done - began), None, None):
                step, commit = rows.placed(None, None)
                assert commit is None or commit
                now = now if step is None else step
                logged[now] = what
                rows.logged(None, None)
                now += 1
    return logged


def test_each_row_once(tmp_path: Path) -> None:
    """Wherever the last row that is left of an attempt is: the next one logs the rows behind it, with W&B's next
    steps."""
    whole = attempt(tmp_path / "whole", 0, 20, -1)
    assert [*whole] == [*range(25)] and whole[4] == "evaluation 4"
    for have in range(8, 17):
        path = tmp_path / str(have)
        there = {step: what for step, what in attempt(path, 0, 15, -1).items() if step <= have}
        again = attempt(path, 6, 18, have)
        there |= {step: what for step, what in again.items() if step <= 20}
        assert there | attempt(path, 12, 20, 20) == whole, have


def test_what_nothing_is_known_of_is_logged(tmp_path: Path) -> None:
    """A program whose position is not known, and a step that is the program's own."""
    attempt(tmp_path / "rows", 0, 15, -1)
    rows = Rows(Places(tmp_path / "rows", begins=False), 10, 11)
    assert not rows.again(None, None, None)
    assert not rows.again(Position(None, 3, 3), None, None)
    assert rows.again(Position(None, 3, 3), 10, None) and not rows.again(Position(0, 3, 3), 11, None)
    rows.logged(40, None)
    assert rows.placed(None, None) == (None, None)


def test_a_file_is_mended(tmp_path: Path) -> None:
    """What a kill has left of the last record goes. A damaged file, and another's, stay."""

    def piece(kind: int, size: int) -> bytes:
        return struct.pack("<IHB", 0, size, kind) + bytes([65]) * size

    begin = b":W&B\xe1\xbe\x00" + piece(1, 100) + piece(1, 3000)
    first = piece(2, BLOCK - len(begin) - 7)
    for rest, left in ((b"", b""), (first, b""), (piece(1, 50)[:-1], b""), (first + piece(4, 9), first + piece(4, 9))):
        path = tmp_path / "run.wandb"
        path.write_bytes(begin + rest)
        mend(str(path))
        assert path.read_bytes() == begin + left
    path.write_bytes(b"another's")
    mend(str(path))
    assert path.read_bytes() == b"another's"
