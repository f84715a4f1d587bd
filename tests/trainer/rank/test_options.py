"""What a rank records of its program, attempt by attempt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer.adapters.program import Program
from trainer.rank.hooks.options import Recorder
from trainer.rundir.files.codec import read


def test_later_attempts_add_to_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that first begins in a later attempt is kept beside the ones before it, and the arguments stay those of
    the attempt that has shown them."""
    path = tmp_path / "options"
    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "1"])
    first = Recorder(path, 4)
    first.fact("lightning.1", "/out/1")
    first.uses("lightning")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    first.first_step()
    known = read(path, Program)
    assert known.trained and known.argv == ("--lr", "1") and known.facts == {"lightning.1": "/out/1"}

    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "1", "--resume"])
    later = Recorder(path, 2, more=True)
    later.uses("lightning")
    later.fact("lightning.1", "/out/of this attempt/1")
    later.fact("lightning.2", "/out/2")
    added = read(path, Program)
    assert added.facts == {"lightning.1": "/out/1", "lightning.2": "/out/2"}
    assert (added.argv, added.world, added.uses, added.trained) == (known.argv, 4, known.uses, True)


def test_a_file_that_cannot_be_read_stays(tmp_path: Path) -> None:
    (path := tmp_path / "options").write_text("{")
    Recorder(path, 1, more=True).fact("lightning.2", "/out/2")
    assert path.read_text() == "{"
