"""What a kill leaves beside a script's own saves: all of it goes, and nothing of anybody else's."""

from __future__ import annotations

import json
from pathlib import Path

from supervisor.run.own_saves import saves_of, sweep
from trainer.rundir.layout import RunDir

MARK = "0123456789abcdef"


def test_hidden_folders_are_swept(tmp_path: Path) -> None:
    """Those of this run's mark in the folders that its journals name; no other run's, no file, nothing behind a
    link."""
    run, out, precious = RunDir(tmp_path / "run"), tmp_path / "out", tmp_path / "precious"
    run.attempt(0).path.mkdir(parents=True)
    told = [{"kind": "beside", "folder": str(folder)} for folder in (out, tmp_path / "gone")]
    run.attempt(0).saves(1).write_text("".join(json.dumps(line) + "\n" for line in told) + "garbage\n")
    for name in (f".saving-{MARK}.0-7-0", f".saving-{MARK}.1-8-3", f".saving-{MARK[::-1]}.0-7-0", "kept"):
        (out / name).mkdir(parents=True)
        (out / name / "model.pt").write_bytes(b"half")
    precious.mkdir()
    (precious / "data").write_bytes(b"x")
    (out / f".saving-{MARK}.0-9-9").symlink_to(precious)
    (out / f".saving-{MARK}.0-file").write_bytes(b"x")

    saves = saves_of(run, 0)
    assert saves.beside == {str(out), str(tmp_path / "gone")}
    sweep(saves, MARK)

    left = {path.name for path in out.iterdir()}
    assert left == {f".saving-{MARK[::-1]}.0-7-0", "kept", f".saving-{MARK}.0-9-9", f".saving-{MARK}.0-file"}
    assert (precious / "data").read_bytes() == b"x"
