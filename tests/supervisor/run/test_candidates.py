"""The saves that a program is told to go on from, and that SUPERVISE_RESUME_FROM names: by journals and real files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from supervisor.run.candidates import candidates
from supervisor.run.own_saves import newest_whole
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import identity_of


class Journals:
    """Writes files as a rank's saves would, and its journal. Each save is later than those before."""

    def __init__(self, folder: Path) -> None:
        self.out, self.run = folder / "out", RunDir(folder / "run")
        self._number = 0

    def save(
        self, name: str, step: int, holds: Iterable[str] = (), *, rank: int = 0, attempt: int = 0, how: str = ""
    ) -> Path:
        """`name` is saved at `step`, beside its place and renamed. `holds`: its top keys. None if it is no dict."""
        path, self._number = self.out / name, self._number + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        (new := path.with_name("new")).write_bytes(os.urandom(100))
        new.rename(path)
        known = identity_of(str(path))
        assert known is not None
        about = {"n": self._number, "path": str(path), "step": step, "here": step, "how": how or "torch.save"}
        about |= {"mono": float(self._number)} | ({"holds": [*holds]} if holds else {})
        done = {key: getattr(known, key) for key in ("size", "content", "inode", "mtime_ns")}
        journal = self.run.attempt(attempt).saves(rank)
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a") as file:
            for line in ({"kind": "save_begun", **about}, {"kind": "save_done", **about, **done}):
                file.write(json.dumps(line) + "\n")
        return path

    def found(self) -> list[str]:
        """The names of the checkpoints that the program may be told of, the best first."""
        return [os.path.relpath(each.path, self.out) for each in candidates(self.run, 1)]

    def offered(self) -> str | None:
        """The name of the file in SUPERVISE_RESUME_FROM."""
        whole = newest_whole(self.run)
        return os.path.relpath(whole.path, self.out) if whole is not None else None


def test_all_ranks_save_to_one_path(tmp_path: Path) -> None:
    """The file is that of the rank that came last, whichever that was."""
    for last in (0, 1):
        made = Journals(tmp_path / str(last))
        for step in (10, 20):
            for rank in (1 - last, last):
                made.save("ckpt.pt", step, ("model", "optimizer"), rank=rank)
        assert [(each.path, each.step) for each in candidates(made.run, 2)] == [(str(made.out / "ckpt.pt"), 20)]
        assert made.offered() == "ckpt.pt"
