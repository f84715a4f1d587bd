"""A run from Python, in a process that has names, signals and modules of its own."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

from supervisor import api
from supervisor.commands.launch import command
from tests.support.launched import environment
from tests.support.supervised import ROOT, Run

TRAIN = """
import os, sys, time
import trainer
assert trainer.whose == "theirs"
open("seen", "w").write(" ".join([os.environ["WHAT"], *sys.argv[1:]]))
while True:
    time.sleep(0.05)
"""
CALLER = """
import ctypes, json, os, pathlib, signal, sys, threading, time
from datetime import timedelta

def signals():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}

def refused(code, what, *words, **options):
    try:
        what(*words, **options)
    except SuperviseError as error:
        assert error.exit_code == code and "supervise:" not in str(error) and len(str(error).splitlines()) == 1, error
        return str(error)
    raise AssertionError

before = signals()
from supervisor import Run, SuperviseError, launch
assert "no script 'nowhere.py'" in refused(2, launch, "nowhere.py")
assert "did you mean '--nproc'" in refused(2, launch, "train.py", nprok=2)
assert not pathlib.Path("runs").exists()
refused(102, Run, ".")
refused(102, Run, "a\\0b")
assert "nowhere" in refused(2, launch, "train.py", cwd="nowhere")
assert "nowhere" in refused(2, Run.find, folder="nowhere")
refused(2, Run.find, "a\\0b")

run = launch("train.py", ["--lr", 1e-4], name="sweep", standby=False, grace=timedelta(seconds=9),
             policy={"host_oom": "stop"}, env={"WHAT": "7"})
spec = json.loads((run.dir / "run.json").read_bytes())
assert (spec["grace"], spec["standby"], spec["actions"]["host_oom"]) == (9.0, False, "stop")
assert run == Run.find("sweep") == Run(run.dir) and run.running
assert next(run.events(follow=True))["msg"] == "run_started"
try:
    raise AssertionError(run.wait(0.0))
except TimeoutError:
    pass
for event in run.events(follow=True):
    if event["msg"] == "group_ready":
        break
while not pathlib.Path("seen").exists():
    time.sleep(0.05)
assert pathlib.Path("seen").read_text() == "7 --lr 0.0001"

os.kill(run.status()["supervisor_pid"], signal.SIGKILL)
refused(1, run.wait)
run.resume()
run.stop()
assert run.wait() == 103 and not run.running
assert [event["msg"] for event in run.events()][-1] == "run_ended"
assert run.report()["state"] == "stopped"

import trainer
assert trainer.whose == "theirs"
assert signals() == before and threading.active_count() == 1
subreaper = ctypes.c_int()
ctypes.CDLL(None).prctl(37, ctypes.byref(subreaper), 0, 0, 0)
assert not subreaper.value and not {"torch", "click", "structlog"} & set(sys.modules)
print("all of it")
"""


def test_a_run_from_python(run: Run) -> None:
    """Launched, followed, lost, resumed and stopped; refused in one line; and the caller is as it was before."""
    run.script(TRAIN, "train.py")
    run.script("whose = 'theirs'", "trainer.py")
    run.script(CALLER, "caller.py")
    done = subprocess.run(
        [sys.executable, "caller.py"],
        cwd=run.folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    made = [*(run.folder / "runs").glob("sweep-*")]
    if made:
        run.dir = type(run.dir)(made[0])
    assert (done.stdout, done.returncode) == ("all of it\n", 0), done.stderr
    run.assert_nothing_left()


def test_its_parameters_are_options_of_launch() -> None:
    """No parameter is left of an option that has gone."""
    own = {"script", "arguments", "module", "cwd", "env", "more"}
    assert set(inspect.signature(api.launch).parameters) - own <= {
        name.removeprefix("--").replace("-", "_") for param in command.params for name in param.opts
    }


SHARED = """
import supervisor, supervise
assert supervisor.whose == "theirs", supervisor
assert supervise.launch.__module__.endswith("api") and supervise.Run.__name__ == "Run"
"""


def test_supervisord_beside_us(tmp_path: Path) -> None:
    """Where supervisord is installed, its folder is found before our file, and ours has another name."""
    shutil.copy(ROOT / "facade" / "supervisor.py", tmp_path)
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    alone = "import supervisor; assert supervisor.launch and supervisor.__file__.endswith('__init__.py')"
    subprocess.run([sys.executable, "-c", alone], env=path, cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").write_text("whose = 'theirs'")
    subprocess.run([sys.executable, "-c", SHARED], env=path, cwd=tmp_path, check=True, timeout=60)
