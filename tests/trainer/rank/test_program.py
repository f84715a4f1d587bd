"""An attempt that runs another program than the one before it is told of, with the files; one that runs the same is
not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from supervisor.core.program import Source, changes, sentence
from tests.support.supervised import Run
from tests.support.waiting import until
from trainer.rank import program
from trainer.rundir.records.beats import last_beats

SCRIPT = """
import os, time, torch
import helper, unused.inner
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while not os.path.exists("finish"):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
"""


def _trains(run: Run, attempt: int) -> int:
    """The pid of rank 0, once the attempt has told of its program."""
    beats = run.dir.attempt(attempt).beats
    until(lambda: run.dir.attempt(attempt).program.exists() and run.dir.program.exists())
    until(lambda: b"helper.py" in run.dir.program.read_bytes())
    return until(lambda: [beat.pid for beat in last_beats(beats) if beat.step >= 1])[0]


def test_a_program_that_changes(run: Run) -> None:
    """Touched, it is the same. A changed module, and a script that is changed while the supervisor is dead, are named;
    a file beside them that nobody has loaded is not."""
    script = run.script(SCRIPT)
    for name in ("helper.py", "unused/inner.py", "stranger.py"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("VALUE = 1\n")
    run.start("--max-restarts", "9", "--no-progress-limit", "9", "--resume-args", "--again", script)
    pid = _trains(run, 0)
    for name in (script, "helper.py"):
        os.utime(run.folder / name)
    (run.folder / "stranger.py").write_text("VALUE = 2\n")
    os.kill(pid, 9)
    pid = _trains(run, 1)
    assert run.events("program_changed") == []

    (run.folder / "helper.py").write_text("VALUE = 12\n")
    (run.folder / "unused/inner.py").unlink()
    (run.folder / script).write_text(SCRIPT.replace(", unused.inner", ""))
    os.kill(pid, 9)
    pid = _trains(run, 2)
    (told,) = run.events("program_changed")
    assert told["attempt"] == 2
    assert [Path(each["path"]).name for each in told["files"]] == ["helper.py", "script.py", "inner.py"]
    assert [each["now"] is None for each in told["files"]] == [False, False, True]

    run.kill_supervisor()
    os.kill(pid, 9)
    until(lambda: not Path(f"/proc/{pid}/exe").exists())
    (run.folder / script).write_text("")
    run.cli("resume", "run")
    run.assert_nothing_left()
    assert [Path(each["path"]).name for each in run.events("program_changed")[1]["files"]] == ["script.py"]


def test_an_extension_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of its own in C is a file of the program, too."""
    standard = importlib.util.find_spec("_queue")
    assert standard is not None and standard.origin is not None
    built = Path(shutil.copy(standard.origin, tmp_path))
    spec = importlib.util.spec_from_file_location("_queue", built)
    assert spec is not None
    monkeypatch.setitem(sys.modules, "_queue", importlib.util.module_from_spec(spec))
    assert (str(built), built.stat().st_size, built.stat().st_mtime_ns) in program.loaded()


def test_the_sentence() -> None:
    """It names three files at most, and how they have changed."""
    before = {f"/{name}.py": Source(1000, 1, name) for name in "abcde"}
    now = {**before, "/b.py": Source(1200, 2, "other"), "/c.py": None, "/d.py": None, "/e.py": None}
    found = changes(before, now)
    assert [change.path for change in found] == ["/b.py", "/c.py", "/d.py", "/e.py"]
    told = sentence(3, 2, found)
    assert "attempt 3 runs another program than attempt 2: /b.py was changed (1.0 kB before, 1.2 kB now)" in told
    assert "/c.py was removed" in told and told.endswith("and 1 more")
    assert changes(before, before) == ()
