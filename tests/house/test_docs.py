"""Every command in the pages is right: it is run, in a folder where its files and its run are there."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from supervisor.commands.launch import command as launch
from tests.support.jobs import environment
from tests.support.screen import Terminal
from tests.support.supervised import ROOT, SUPERVISE, Run
from tests.support.waiting import until
from trainer.rundir.layout import RunDir, committed_steps

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAIN = """
import os, time, torch, torch.distributed as dist
from trainer.checkpoint import Checkpointer
ranks = int(os.environ.get("WORLD_SIZE", "1"))
if ranks > 1:
    dist.init_process_group("gloo")
model = torch.nn.Linear(4, 4)
if ranks > 1:
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters())
ckpt = Checkpointer(model=model, optimizer=optimizer, every=10, keep=20)
hold = os.path.exists("hold")
for step in range(ckpt.restore(), 100_000 if hold else 70):
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    ckpt.step(step + 1)
    print("step", step + 1, flush=True)
    time.sleep(0.05 * hold)
ckpt.close()
if ranks > 1:
    dist.destroy_process_group()
"""
"""It takes any arguments, and makes 70 steps. If there is a file `hold`, it goes on and on."""
SMALL = "--n-layer 1 --n-head 1 --n-embd 8 --batch-size 2 --block-size 8".split()
"""Added to what a page gives to the built-in trainer."""


def commands() -> list[str]:
    """The lines of the pages that call supervise, without what is said about them."""
    fences = [fence for page in PAGES for fence in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)]
    blocks = [block for language, block in fences if language in ("", "bash")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [*dict.fromkeys(re.split(r"\s+# ", line)[0].strip() for line in lines if line.startswith("supervise "))]


ALL = commands()


def of(*names: str) -> list[str]:
    """The lines that call these commands."""
    return [line for line in ALL if line.split()[1] in names]


ELSEWHERE = [line for line in of("launch") if "--nnodes" in line]
"""They need other machines: their own tests launch such runs."""
LIVE = of("watch", "stacks", "inject", "attach", "stop", "resume", "web")
READ = [line for line in ALL if line not in {*of("launch", "chaos"), *LIVE}]


def test_there_are_commands() -> None:
    """They are found; each page of the way through has some."""
    assert len(of("launch")) >= 12 and len(READ) >= 15 and len(LIVE) >= 8
    for name in ("first-run", "when-it-fails", "your-own-script", "checkpoints", "slurm", "away", "reference"):
        assert re.search(r"^supervise ", (ROOT / "docs" / f"{name}.md").read_text(), re.M), name


def prepared(folder: Path) -> None:
    """The files that the pages speak of are there."""
    (folder / "package").mkdir()
    for name in ("train.py", "checkpointer.py", "package/train.py"):
        (folder / name).write_text(TRAIN)
    torch.save({"weight": torch.ones(2)}, folder / "state.pt")


@pytest.mark.parametrize("line", ELSEWHERE)
def test_launches_over_several_nodes(line: str) -> None:
    """Its options are there, with values that they take."""
    context = launch.make_context("launch", shlex.split(line)[2:])
    assert context.params["command_line"]


@pytest.mark.parametrize("line", [line for line in of("launch") if line not in ELSEWHERE])
def test_launches(run: Run, line: str) -> None:
    """It trains to the end, whatever it injects."""
    prepared(run.folder)
    words = [word.replace("/var/lib/node_exporter", str(run.folder)) for word in shlex.split(line)[2:]]
    words += SMALL if "--" in words else []
    code = run.launch(*words) if "-d" not in words else None
    if code is None:
        run.start(*words)
        assert run.process is not None and run.process.wait(120) == 0
        run.until_event("first_step")
        run.cli("stop", "run", "--now")
        run.assert_nothing_left()
        return
    assert code == 0, run.warnings()
    assert run.events("run_ended")[0]["state"] == "finished"
    assert len(run.events("fault_injected")) == line.count("--inject")


def test_what_only_looks(run: Run) -> None:
    """Each line, in a folder with a run that is over and has checkpoints: it says something, and ends with 0. What
    would change this machine is only printed."""
    prepared(run.folder)
    run.dir = RunDir(run.folder / "runs" / "train-7f3a")
    run.start("--nproc", "2", "--inject", "kill:rank=1@step=35", "train.py", cwd=run.folder)
    assert run.wait() == 0
    # The pages look at it.
    told = run.events("checkpoint_committed", "checkpoint_failed", "warning")
    assert 40 in committed_steps(run.dir.checkpoints), told
    for line in READ:
        words = [word if word != "RUN" else run.dir.path.name for word in shlex.split(line)[1:]]
        if words[0] == "submit":
            words.insert(1, "--print")
        if words[0] == "service":
            words.insert(2, "--print")
        done = run.cli(*words)
        assert done.stdout or done.stderr, line


def test_what_is_for_a_run_that_is_running(run: Run) -> None:
    """Each line, on a run that lives."""
    prepared(run.folder)
    hold = run.folder / "hold"
    hold.touch()
    run.dir = RunDir(run.folder / "runs" / "train-7f3a")
    run.start("-d", "--nproc", "2", "train.py", cwd=run.folder)
    assert run.process is not None and run.process.wait(120) == 0
    run.until_event("first_step")
    left = list(LIVE)
    for name, how in HOW.items():
        for line in sorted((line for line in left if line.split()[1] == name), key=len, reverse=True):
            how(run, [word if word != "RUN" else run.dir.path.name for word in shlex.split(line)[1:]])
            left.remove(line)
    assert left == []


def _ends(run: Run, words: list[str]) -> None:
    done = run.cli(*words)
    assert done.stdout or done.stderr


def _inject(run: Run, words: list[str]) -> None:
    before = len(run.events("fault_injected"))
    run.until_event("checkpoint_committed")
    run.cli(*words)
    run.until_event("fault_injected", before + 1)


def _watch(run: Run, words: list[str]) -> None:
    terminal = Terminal(100, 30)
    try:
        files = {"stdin": terminal.file, "stdout": terminal.file, "stderr": terminal.file}
        process = subprocess.Popen([SUPERVISE, *words], cwd=run.folder, env={**environment(), "TERM": "xterm"}, **files)
        terminal.until(lambda text: "goodput" in text)
        terminal.type("q")
        assert process.wait(120) == 0
    finally:
        terminal.close()


def _attach(run: Run, words: list[str]) -> None:
    log = run.folder / "attached"
    with log.open("w") as file:
        process = subprocess.Popen([SUPERVISE, *words], cwd=run.folder, env=environment(), stdout=file, stderr=file)
        until(lambda: "step" in log.read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert not run.events("run_ended")


def _web(run: Run, words: list[str]) -> None:
    command = [SUPERVISE, *words, "--port", "0"]
    process = subprocess.Popen(command, cwd=run.folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next(found[0] for said in process.stdout if (found := re.search(r"http://\S+", said)))
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"train-7f3a" in opener.open(address, timeout=120).read()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def _stop(run: Run, words: list[str]) -> None:
    run.cli(*words)
    assert run.events("run_ended")[-1]["state"] == "stopped"


def _resume(run: Run, words: list[str]) -> None:
    if "-d" in words:
        run.cli(*words)
        run.cli("stop", "--now")
    else:
        (run.folder / "hold").unlink(missing_ok=True)
        run.cli(*words)
        assert run.events("run_ended")[-1]["state"] == "finished"


HOW = {
    "watch": _watch,
    "stacks": _ends,
    "web": _web,
    "attach": _attach,
    "inject": _inject,
    "stop": _stop,
    "resume": _resume,
}
"""By command, in this order: how its line is tried."""


@pytest.mark.long
@pytest.mark.parametrize("line", of("chaos"))
def test_chaos(tmp_path: Path, line: str) -> None:
    command = [str(Path(sys.executable).with_name("supervise")), *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr.decode()
