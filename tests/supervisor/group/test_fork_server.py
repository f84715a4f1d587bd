"""What the fork server imports for its ranks, and what it must not: asked over its pipes, as the supervisor does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.group.learned import Learned
from supervisor.run.spec import Spec
from tests.support.supervised import ROOT, Run, environment
from tests.support.waiting import until
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir
from trainer.rundir.records.learned import Wanted

THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
HARM = {
    "thread": (THREAD, "starts a thread"),
    "folder": ("import os; os.chdir('/')", "changes the current folder"),
    "handler": ("import signal; signal.signal(signal.SIGUSR1, print)", "changes the signal handlers"),
    "mask": ("import os; os.umask(0o027)", "changes the mask of file modes"),
    "logs": ("import logging; logging.warning('no fast kernel')", "changes the root logger"),
    "seed": ("import torch; torch.manual_seed(1234)", "changes torch's seed"),
    "rank": ("import os; FIRST = os.getenv('RANK', '0') == '0'", "reads RANK"),
    "crash": ("import os; os.abort()", "SIGABRT"),
    "leave": ("import os; os._exit(3)", "exit code 3"),
    "sleep": ("import time; time.sleep(600)", "stood still"),
}
"""By the name of a module: its text, and what is said of it."""
HARMLESS = {
    "logger": "import logging; logging.getLogger('its').addHandler(logging.StreamHandler())",
    "plain": "import os; os.environ['SET_BY_AN_IMPORT'] = '1'; print('not an answer')",
    "copies": "import os; COPY = dict(os.environ), {**os.environ}, os.environ.copy(), list(os.environ.items())",
    "missing": "raise ImportError('not here')",
    "exits": "raise SystemExit(4)",
    "odd": "raise BaseException('not even an Exception')",
}


class Server:
    """A fork server that imports what lies in `folder`, and gives a module that stands still three seconds."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.file = folder / "wanted.json"
        code = (
            "import trainer.rank.preload.trial as trial; trial.IDLE = 3.0\n"
            "from trainer.rank.engine.fork_server import main; main([])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment(**{"PYTHONPATH": str(folder), **env}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *names: str, **left_out: str) -> dict[str, Any]:
        """Its answer, with what the file says that it names."""
        body = {"names": names, "causes": left_out, "left_out": list(left_out), "seconds": 0.0}
        self.file.write_text(json.dumps(body))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"import": str(self.file), "gently": False}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return {**answer, **json.loads(Path(answer["found"]).read_bytes())}

    def ask_beside(self, own: dict[str, str], *names: str) -> dict[str, Any]:
        """As ask(), for a script with modules of its own."""
        self.file.write_text(json.dumps({"names": names, "mine": own}))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"import": str(self.file)}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return {**answer, **(json.loads(Path(answer["found"]).read_bytes()) if "found" in answer else {})}

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where modules are installed."""
    (folder := tmp_path / "site-packages").mkdir()
    return folder


@pytest.fixture
def server(site: Path) -> Iterator[Server]:
    made = Server(site)
    yield made
    made.close()


def test_what_does_harm_is_left_out_at_once(server: Server, site: Path) -> None:
    """One request, one answer: every module that would spoil the process is named, with what it does and all that
    import it in any way; the rest is imported, and the process that serves can fork."""
    for name, text in {**HARMLESS, **{name: text for name, (text, _) in HARM.items()}}.items():
        (site / f"{name}.py").write_text(text)
    (site / "by_name.py").write_text("import importlib; importlib.import_module('thread')")
    (site / "around.py").write_text("import plain\nimport by_name")
    (site / "tolerant.py").write_text("try:\n    import folder\nexcept Exception:\n    pass")
    (site / "late.py").write_text("def use():\n    import thread")
    (site / "uses.py").write_text("import late\nlate.use()")
    package = site / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner")
    (package / "inner.py").write_text(f"{THREAD}\nimport plain")
    (package / "other.py").touch()
    importers = ["around", "by_name", "tolerant", "uses", "late", "package", "package.inner", "package.other"]

    found = server.ask("plain", *HARM, *importers, *HARMLESS)

    assert found["causes"].keys() == {*HARM, "package.inner"}
    assert all(what in found["causes"][name] for name, (_, what) in HARM.items())
    assert {*found["left_out"]} == {*HARM, *importers} - {"late"}
    assert len(list(Path(f"/proc/{found['pid']}/task").iterdir())) == 1
    assert server.process.pid != found["pid"]
    # Asked again with what is known, it need not find out anything.
    again = server.ask("plain", "late", "thread", **found["causes"])
    assert again["pid"] == found["pid"] and again["causes"] == found["causes"]


def test_it_goes_when_nobody_asks(site: Path) -> None:
    """The process that serves ends with the pipe, and with the one that was started, also while it imports. It needs
    no torch for that."""
    (site / "torch.py").write_text("raise ImportError")
    (site / "plain.py").write_text(HARMLESS["plain"])
    server = Server(site)
    try:
        serving = Path(f"/proc/{server.ask('plain')['pid']}/exe")
        server.process.kill()
        server.process.wait()
        until(lambda: not serving.exists())
    finally:
        server.close()

    busy, note = Server(site), site / "busy.pid"
    (site / "busy.py").write_text(f"import os\nopen({str(note)!r}, 'w').write(str(os.getpid()))\nwhile True: pass")
    body = {"names": ["busy"], "causes": {}, "left_out": [], "seconds": 0.0}
    busy.file.write_text(json.dumps(body))
    assert busy.process.stdin is not None
    busy.process.stdin.write(json.dumps({"import": str(busy.file)}) + "\n")
    busy.process.stdin.flush()
    try:
        pid = int(until(lambda: note.exists() and note.read_text()))
    finally:
        busy.close()
    until(lambda: not Path(f"/proc/{pid}/exe").exists())


def test_a_list_larger_than_a_pipe(run: Run) -> None:
    """Thousands of names, as a Hugging Face script has them, reach the fork server: the first recovery is warm."""
    site = run.folder / "site-packages" / "large"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    names = [f"large.module_with_a_name_that_is_not_short_{number:04d}" for number in range(2500)]
    for name in names:
        (site / f"{name.partition('.')[2]}.py").touch()
    text = f"""
import importlib, os, sys, torch
names = {names!r}
open("warm" + os.environ["SUPERVISE_ATTEMPT"], "w").write(str(len(sys.modules.keys() & {{*names}})))
for name in names:
    importlib.import_module(name)
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
while True:
    optimizer.step()
    __import__("time").sleep(0.02)
"""
    path = os.pathsep.join([str(site.parent), os.environ.get("PYTHONPATH", "")])
    run.start(run.script(text), PYTHONPATH=path, XDG_CACHE_HOME=str(run.folder / "cache"))
    run.until_event("first_step")
    until(lambda: run.dir.modules.exists() and run.dir.modules.stat().st_size > 65536)
    # The group that waits is made anew once all of that is imported.
    until(lambda: len({e["launcher_pid"] for e in run.events("standby_ready") if "serving_pid" in e}) > 0)
    run.cli("inject", "run", "kill")
    run.until_event("first_step", 2)
    run.cli("stop", "run", "--now")
    assert run.wait() == 103

    assert not run.events("standby_lost")
    assert [event["kind"] for event in run.events("attempt_started")] == ["fork", "fork"]
    assert [(run.folder / f"warm{attempt}").read_text() for attempt in (0, 1)] == ["0", str(len(names))]


def test_a_variable_that_the_script_sets_from_now_on(run: Run) -> None:
    """The script is changed: it sets a variable before an import that was made for it already. The attempt that finds
    the old import tells of it; the ones after it import the module themselves."""
    site = run.folder / "site-packages"
    site.mkdir()
    (site / "has_a_mode.py").write_text("import os\nMODE = os.environ.get('MODE_OF_IT', 'slow')")
    text = """
import os, time, torch
SETTING
import has_a_mode
open("mode" + os.environ["SUPERVISE_ATTEMPT"], "w").write(has_a_mode.MODE)
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
while True:
    optimizer.step()
    time.sleep(0.02)
"""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    script = run.script(text.replace("SETTING", ""))
    run.start(script, PYTHONPATH=path, XDG_CACHE_HOME=str(run.folder / "cache"))
    until(lambda: any("serving_pid" in event for event in run.events("standby_ready")))
    run.script(text.replace("SETTING", "os.environ['MODE_OF_IT'] = 'fast'"))
    run.cli("inject", "run", "kill")
    run.until_event("standby_lost")
    until(lambda: any("left_out" in event for event in run.events("standby_ready")))
    run.cli("inject", "run", "kill")
    run.until_event("first_step", 3)
    run.cli("stop", "run", "--now")
    assert run.wait() == 103

    assert [(run.folder / f"mode{attempt}").read_text() for attempt in range(3)] == ["slow", "slow", "fast"]
    assert "it has imported has_a_mode, which reads MODE_OF_IT" in run.events("standby_lost")[0]["reason"]
    assert run.events("standby_ready")[-1]["left_out"].keys() == {"has_a_mode"}
    assert run.events("attempt_started")[2]["kind"] == "fork"


def test_the_script_has_a_package_of_its_own(server: Server, site: Path) -> None:
    """An installed one of that name is not imported, nor what imports it. A server that has it is of no use."""
    (site / "forked.py").touch()
    (site / "uses.py").write_text("import forked")
    (site / "plain.py").touch()
    own = {"forked": "/script/forked.py"}

    found = server.ask_beside(own, "uses", "plain")
    assert found["causes"] == {"forked": "the script has its own"}
    assert {*found["left_out"]} == {"forked", "uses"}
    assert "found" in server.ask_beside({}, "uses")
    assert server.ask_beside(own, "uses")["unfit"] == "it has imported forked, and the script has its own"


def test_what_was_not_installed_is_not_imported(site: Path, tmp_path: Path) -> None:
    """It may change while the run goes on: a checkout that an installed package imports, say. Nor what imports it."""
    (tmp_path / "checkout.py").touch()
    (site / "uses.py").write_text("import checkout")
    (site / "plain.py").touch()
    server = Server(site, PYTHONPATH=os.pathsep.join([str(site), str(tmp_path)]))
    try:
        found = server.ask("uses", "plain")
        assert {*found["left_out"]} == {"checkout", "uses"}
        assert str(tmp_path / "checkout.py") in found["causes"]["checkout"]
    finally:
        server.close()


def test_a_new_module_beside_the_script(site: Path, tmp_path: Path) -> None:
    """It has the name of a package that an earlier attempt has imported, and no rank has told of it yet."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.modules.write_text(json.dumps(["datasets", "datasets.arrow", "tokenizers"]))
    learned = Learned(Spec("r", "m", ("train.py",), False, 1, str(tmp_path)), run)
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "datasets.py").touch()

    learned.ask(tmp_path / "wanted.json")

    wanted = read(tmp_path / "wanted.json", Wanted)
    assert wanted.mine == {"datasets": str(tmp_path / "datasets.py")} and "datasets" in wanted.names
