"""Our names and the user's: each program gets its own `trainer` and `supervisor`, in every way of starting, and we ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervised import ROOT, SUPERVISE, Run

OURS = """
import trainer, supervise, trainer.checkpoint
from supervise.checkpoint.checkpointer import Checkpointer
assert supervise.Checkpointer is trainer.Checkpointer is trainer.checkpoint.Checkpointer is Checkpointer
assert trainer is supervise and trainer.checkpoint is supervise.checkpoint
import trainer.rundir.layout
import inspect, runpy
assert runpy.run_module("trainer.rundir.duration")["parse_duration"]("2h") == 7200
assert "class Checkpointer" in inspect.getsource(Checkpointer)
assert sys.modules["trainer.rundir"] is sys.modules["_supervise.rundir"]
open(f"ours{os.environ.get('RANK', '')}", "w").close()
"""
THEIRS = """
import trainer, supervisor, supervise
assert (trainer.whose, supervisor.whose) == ("theirs", "theirs"), (trainer, supervisor)
assert supervise.Checkpointer.__module__.endswith("checkpoint.checkpointer")
open(f"{sys.argv[1]}{os.environ.get('RANK', '')}", "w").close()
"""
SPAWNS = """
import multiprocessing
def child(name):
    import trainer
    assert trainer.whose == "theirs"
    open(name, "w").close()
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child, args=("child",))
    process.start(); process.join()
    assert process.exitcode == 0
"""
START = "import os, sys\n"


def theirs(folder: Path, package: bool) -> None:
    """`trainer` and `supervisor` of the user's, as packages or modules, in `folder`."""
    folder.mkdir(exist_ok=True)
    for name in ("trainer", "supervisor"):
        path = folder / name / "__init__.py" if package else folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("whose = 'theirs'\n")


def test_one_package_under_every_name(run: Run) -> None:
    """In a rank and in plain Python the public names lead to the same objects."""
    assert run.launch("--nproc", "2", run.script(START + OURS)) == 0
    assert (run.folder / "ours0").exists() and (run.folder / "ours1").exists()

    subprocess.run([sys.executable, "script.py"], cwd=run.folder, check=True, timeout=60)
    assert (run.folder / "ours").exists()


@pytest.mark.parametrize("package", [True, False], ids=["package", "module"])
@pytest.mark.parametrize("standby", ["--standby", "--no-standby"])
def test_users_modules_beside_the_script(run: Run, package: bool, standby: str) -> None:
    """They are found before ours, in forked and in fresh ranks, and by the children that these spawn."""
    theirs(run.folder, package)
    assert run.launch("--nproc", "2", standby, run.script(START + SPAWNS + THEIRS), "done") == 0
    assert {"done0", "done1", "child"} <= {path.name for path in run.folder.iterdir()}


@pytest.mark.parametrize("package", [True, False], ids=["package", "module"])
def test_users_modules_on_pythonpath(run: Run, package: bool) -> None:
    """With PYTHONPATH=src and a trainer in src/, the command line works and the script gets its own."""
    theirs(run.folder / "src", package)
    (run.folder / "src" / "click.py").write_text("raise SystemExit('their click, in our process')\n")
    path = str(run.folder / "src")
    assert run.launch(run.script(START + THEIRS), "done", PYTHONPATH=path) == 0
    assert (run.folder / "done0").exists()
    done = subprocess.run([SUPERVISE, "ls"], cwd=run.folder, env={**os.environ, "PYTHONPATH": path}, timeout=60)
    assert done.returncode == 0


def test_users_modules_on_a_path_set_later(run: Run) -> None:
    """A script that puts a folder on sys.path itself finds its own there, also if it has used ours under another name."""
    theirs(run.folder / "src", package=True)
    early = "import supervise.checkpoint\nsys.path.insert(0, 'src')\n"
    assert run.launch(run.script(START + early + THEIRS), "done") == 0


def test_users_trainer_as_a_module(run: Run) -> None:
    """`-m trainer` and `-m trainer.task` run the user's, a folder without __init__.py, too; without a script it is ours."""
    theirs(run.folder, package=True)
    (run.folder / "trainer" / "__main__.py").write_text("open('main', 'w').close()\n")
    (run.folder / "trainer" / "task.py").write_text("from trainer import whose\nopen('task', 'w').write(whose)\n")
    assert run.launch("-m", "trainer") == 0
    assert (run.folder / "main").exists()
    assert run.launch("--resume", "never", "-m", "trainer.task") == 0
    assert (run.folder / "task").read_text() == "theirs"


def test_users_folder_without_init(run: Run) -> None:
    """A namespace package of the user's is not shadowed by ours, wherever ours comes on the path."""
    (run.folder / "trainer").mkdir()
    (run.folder / "trainer" / "task.py").write_text("open('task', 'w').close()\n")
    assert run.launch("-m", "trainer.task") == 0
    assert (run.folder / "task").exists()


def test_without_a_script_it_is_ours(run: Run) -> None:
    """The built-in trainer trains, whatever lies in the current folder."""
    theirs(run.folder, package=True)
    small = ["--steps", "3", "--n-layer", "1", "--n-embd", "16", "--n-head", "1", "--block-size", "16"]
    assert run.launch("--", *small) == 0
    assert run.events("run_ended")[-1]["step"] == 3


def test_packages_that_are_installed() -> None:
    """pyproject.toml names every folder of ours, under the name that it is loaded by."""
    listed = set(re.findall(r'^    "(_super[\w.]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    real = {"trainer": "_supervise", "supervisor": "_supervisor"}
    folders = {
        ".".join([real[top], *path.parent.relative_to(ROOT / top).parts])
        for top in real
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == folders
