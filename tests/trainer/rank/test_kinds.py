"""Whatever Python can run, a rank runs, cold and forked, and it ends as under Python."""

from __future__ import annotations

import gzip
import json
import os
import py_compile
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from tests.support.supervised import Run, environment

SEEN = """
import dataclasses, json, os, sys

@dataclasses.dataclass
class Config:
    rate: float = 0.1

spec = __spec__ and __spec__.name
types = [str(field.type) for field in dataclasses.fields(Config)]
seen = [__name__, __package__, spec, sys.argv, sys.path[0], types]
with open("seen" + os.environ.get("SUPERVISE_ATTEMPT", ""), "w") as file:
    json.dump(seen, file)
if os.environ.get("SUPERVISE_ATTEMPT") == "0":
    os.kill(os.getpid(), 9)
"""
"""The second attempt is a fork."""

WRITES = """
import gzip, os, signal, threading, time, weakref

class Log:
    def __init__(self):
        self.file = gzip.open("log.gz", "wt")

    def __del__(self):
        self.file.write(os.path.basename("the/last line"))

class Gone: ...

log, gone = Log(), weakref.proxy(Gone())
signal.signal(signal.SIGUSR1, lambda *_: log)
"""
"""What it writes is whole only once its objects are deleted. A signal handler holds all its names."""


def _programs(folder: Path) -> dict[str, list[str]]:
    """What is given to Python, by kind."""
    package = folder / "spaces" / "inner"
    package.mkdir(parents=True)
    (package / "program.py").write_text(SEEN)
    (folder / "project").mkdir()
    (folder / "project" / "__main__.py").write_text(SEEN)
    (folder / "plain.py").write_text(SEEN)
    py_compile.compile(str(folder / "plain.py"), cfile=str(folder / "compiled.pyc"))
    zipapp.create_archive(folder / "project", folder / "app.pyz", "/usr/bin/env python3")
    return {
        "script": ["plain.py"],
        "folders without __init__.py": ["-m", "spaces.inner.program"],
        "folder": ["project"],
        "archive": ["app.pyz"],
        "compiled": ["compiled.pyc"],
    }


@pytest.mark.parametrize("kind", ["script", "folders without __init__.py", "folder", "archive", "compiled"])
def test_what_python_runs(run: Run, kind: str) -> None:
    """Its name, its package, its arguments and where its modules are looked for, as under Python."""
    program = [*_programs(run.folder)[kind], "--rate", "1"]
    subprocess.run([sys.executable, *program], cwd=run.folder, env=environment(), check=True)
    assert run.launch("--nproc", "1", *program) == 0

    plain, *seen = [json.loads((run.folder / f"seen{number}").read_text()) for number in ("", "0", "1")]
    assert seen == [plain, plain]
    assert "class 'float'" in plain[-1][0]


@pytest.mark.parametrize("standby", ["--standby", "--no-standby"])
def test_objects_are_deleted_at_the_end(run: Run, standby: str) -> None:
    """Also if something outside of the main module holds a function of it. Their modules are there meanwhile."""
    assert run.launch("--nproc", "1", standby, run.script(WRITES)) == 0
    assert gzip.decompress((run.folder / "log.gz").read_bytes()) == b"last line"
    assert "Traceback" not in run.dir.attempt(0).rank_log(0).read_text()


def test_a_program_that_asks_how_often_it_was_started(run: Run) -> None:
    """torchrun's agent tells it: 0 means a fresh job, whose old files a program may remove."""
    text = "import os\nname = 'TORCHELASTIC_{}'.format\nfile = open('told' + os.environ['SUPERVISE_ATTEMPT'], 'w')\n"
    text += "print(os.environ[name('RESTART_COUNT')], os.environ[name('MAX_RESTARTS')], file=file, flush=True)\n"
    text += "if os.environ['SUPERVISE_ATTEMPT'] < '2': os.kill(os.getpid(), 9)\n"
    assert run.launch("--nproc", "1", "--max-restarts", "5", run.script(text)) == 0
    told = [(run.folder / f"told{number}").read_text().split() for number in range(3)]
    assert told == [["0", "5"], ["1", "5"], ["2", "5"]]

    assert run.launch("--nproc", "1", "--resume", "never", run.script(text)) == 0
    assert (run.folder / "told3").read_text().split() == ["0", "3"]


def test_a_folder_that_is_no_program(run: Run) -> None:
    (run.folder / "empty").mkdir()
    assert run.launch("empty") == 2
    assert not run.dir.path.exists() and os.listdir(run.folder / "empty") == []
