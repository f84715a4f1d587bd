"""Our names and the user's: each program gets its own `trainer` and `supervisor`, in every way of starting, and we
ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installed import install
from tests.support.scripts import STEPPING
from tests.support.supervised import ROOT, SUPERVISE, Run

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

    subprocess.run([sys.executable, "script.py"], cwd=run.folder, check=True, timeout=200)
    assert (run.folder / "ours").exists()


@pytest.mark.parametrize("package", [True, pytest.param(False, marks=pytest.mark.long)], ids=["package", "module"])
@pytest.mark.parametrize("standby", ["--standby", pytest.param("--no-standby", marks=pytest.mark.long)])
def test_users_modules_beside_the_script(run: Run, package: bool, standby: str) -> None:
    """They are found before ours, in forked and in fresh ranks, and by the children that these spawn."""
    theirs(run.folder, package)
    assert run.launch("--nproc", "2", standby, run.script(START + SPAWNS + THEIRS), "done") == 0
    assert {"done0", "done1", "child"} <= {path.name for path in run.folder.iterdir()}


@pytest.mark.parametrize("package", [pytest.param(True, marks=pytest.mark.long), False], ids=["package", "module"])
def test_users_modules_on_pythonpath(run: Run, package: bool) -> None:
    """With PYTHONPATH=src and a trainer in src/, the command line works and the script gets its own."""
    theirs(run.folder / "src", package)
    (run.folder / "src" / "click.py").write_text("raise SystemExit('their click, in our process')\n")
    path = str(run.folder / "src")
    assert run.launch(run.script(START + THEIRS), "done", PYTHONPATH=path) == 0
    assert (run.folder / "done0").exists()
    done = subprocess.run([SUPERVISE, "ls"], cwd=run.folder, env={**os.environ, "PYTHONPATH": path}, timeout=200)
    assert done.returncode == 0


def test_users_modules_on_a_path_set_later(run: Run) -> None:
    """A script that puts a folder on sys.path itself finds its own there, also if it has used ours under another
    name."""
    theirs(run.folder / "src", package=True)
    early = "import supervise.checkpoint\nsys.path.insert(0, 'src')\n"
    assert run.launch(run.script(START + early + THEIRS), "done") == 0


def test_users_trainer_as_a_module(run: Run) -> None:
    """`-m trainer` and `-m trainer.task` run the user's, a folder without __init__.py, too; without a script it is
    ours."""
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


LATER = """
import importlib.abc, sys
from importlib.machinery import PathFinder
where, way = sys.argv[1:]
class Editable(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [where]) if name in ("trainer", "supervise") else None
sys.meta_path.append(Editable()) if way == "finder" else sys.path.append(where)
import _supervise, trainer
assert trainer.whose == "theirs" and sys.modules["trainer"] is trainer, trainer
import trainer.task, supervise
assert trainer.task.trainer is trainer and supervise is _supervise
"""


@pytest.mark.parametrize("way", ["path", "finder"])
def test_users_module_that_is_found_after_ours(tmp_path: Path, way: str) -> None:
    """In plain Python our installed facade gives way to a package of the user's that is installed to be edited, which
    comes later on the path, or is known to a finder of its own."""
    for name in ("trainer", "supervise"):
        (tmp_path / "site" / name).mkdir(parents=True)
        shutil.copy(ROOT / "trainer/__init__.py", tmp_path / "site" / name)
    theirs(tmp_path / "src", package=True)
    (tmp_path / "src/trainer/task.py").write_text("import trainer\n")
    (tmp_path / "data/trainer").mkdir(parents=True)
    command = [sys.executable, "-c", LATER, str(tmp_path / "src"), way]
    path = os.pathsep.join(str(tmp_path / name) for name in ("site", "data"))
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, check=True, timeout=200)


USES = """
import importlib, inspect, pickle, pkgutil, sys, threading

def load(name, gate, found):
    gate.wait()
    found.append(importlib.import_module(name))

def threads(*names):
    gate, found = threading.Barrier(len(names)), []
    started = [threading.Thread(target=load, args=(name, gate, found)) for name in names]
    [thread.start() for thread in started], [thread.join(100) for thread in started]
    assert len(found) == len(names) and len(set(map(id, found))) == 1, (names, found)

if __name__ == "__main__":
    real = ("trainer", "supervise")
    threads(*[f"{name}.checkpoint.checkpointer" for name in (*real, *real)])
    threads(*[f"{name}.checkpoint.disk.restore" for name in real])
    import trainer, supervise
    assert importlib.reload(trainer) is trainer is supervise
    assert importlib.reload(trainer.checkpoint.options) is supervise.checkpoint.options
    names = {found.name for found in pkgutil.walk_packages(trainer.__path__, "trainer.")}
    assert {"trainer.checkpoint.disk.restore", "trainer.rundir.layout"} <= names
    assert "class Checkpointer" in inspect.getsource(trainer.Checkpointer)
    assert inspect.getmodule(supervise.Checkpointer) is trainer.checkpoint.checkpointer
    assert importlib.util.find_spec("trainer.gpt").submodule_search_locations
    from torch.utils.data import DataLoader
    from trainer.rundir.layout import RunDir
    import helper
    assert pickle.loads(pickle.dumps(RunDir)) is RunDir
    loader = DataLoader([helper.Item(RunDir), helper.Item(RunDir)], num_workers=1, multiprocessing_context="spawn",
                        batch_size=None)
    assert [item.what.__name__ for item in loader] == ["RunDir", "RunDir"]
    open("used", "w").close()
"""
HELPER = """
import trainer
assert trainer.Checkpointer
class Item:
    def __init__(self, what): self.what = what
"""


@pytest.mark.parametrize("supervised", [True, False], ids=["rank", "plain"])
def test_what_else_is_done_with_modules(run: Run, supervised: bool) -> None:
    """Several names imported by threads at once, reloaded, walked, inspected, and pickled to workers that are
    spawned."""
    run.script(HELPER, "helper.py")
    script = run.script(USES)
    if supervised:
        assert run.launch(script) == 0
    else:
        subprocess.run([sys.executable, script], cwd=run.folder, check=True, timeout=200)
    assert (run.folder / "used").exists()


def test_users_module_that_has_our_other_name(run: Run) -> None:
    """A supervise.py beside the script is the script's; `trainer` is ours all the same, and so is the command."""
    run.script("whose = 'theirs'", "supervise.py")
    run.script("import supervise, trainer; assert supervise.whose == 'theirs' and trainer.Checkpointer")
    assert run.launch("script.py") == 0
    subprocess.run([sys.executable, "script.py"], cwd=run.folder, check=True, timeout=200)


def test_what_a_script_learns_is_by_real_names(run: Run) -> None:
    """A name of ours that the user takes after the first run is theirs in the next one, whose fork server has
    learned."""
    steps = "import trainer.checkpoint\n" + STEPPING
    assert run.launch(run.script(steps), "30") == 0
    theirs(run.folder, package=False)
    taken = STEPPING + "import trainer; assert trainer.whose == 'theirs'\n"
    assert run.launch("--resume", "never", "--inject", "kill:rank=0@step=20", run.script(taken), "30") == 0


def test_another_distribution_is_told_at_launch(run: Run) -> None:
    """In one sentence, with what to do about it; and the run is none the worse."""
    files = {"trainer/__init__.py": "whose = 'theirs'\n"}
    place = run.folder / "installed"
    install(place, "coach", files)
    code = f"import sys; sys.path.append({str(place)!r}); from _supervisor.__main__ import main; main()"
    run.start(run.script("import supervise; supervise.Checkpointer"), program=[sys.executable, "-c", code])
    assert run.wait() == 0
    (said,) = run.warnings().splitlines()
    assert "coach 1.0" in said and "import ours as supervise" in said


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
