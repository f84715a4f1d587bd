"""Scripts that save and resume by themselves: which step of the run is which, what that says of progress, and where
nothing tells it. Real optimizers, real kills."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.support.supervised import Run
from tests.support.waiting import until

SCRIPT = """
import io, os, signal, sys, time, torch, torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
kind, form, dies, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float([*sys.argv, 0.01][4])
rank, attempt = int(os.environ["RANK"]), int(os.environ["SUPERVISE_ATTEMPT"])
print("offered", os.environ["SUPERVISE_RESUME_STEP"], os.environ["SUPERVISE_RESUME_FROM"], flush=True)
torch.manual_seed(0)

class Muon(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.mul_(0.9).add_(p.grad), alpha=group["lr"])

class Deadly:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

bare = torch.nn.Linear(4, 4)
if dist.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1":
    dist.init_process_group("gloo")
made = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "zero": lambda p: ZeroRedundancyOptimizer(p, torch.optim.SGD, lr=0.01, momentum=0.9),
}
optimizer = made[kind](bare.parameters())

def save(step):
    if kind == "zero":
        optimizer.consolidate_state_dict(0)
    if rank:
        return
    state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    if form == "replace":
        torch.save(state, "ck.tmp")
        os.replace("ck.tmp", "ck.pt")
    elif form == "torn":
        torch.save({**state, "end": Deadly() if step == 60 and attempt == 0 else 0}, f"ck{step:03}.pt")
    elif form == "safetensors":
        from safetensors.torch import save_file
        save_file({**bare.state_dict(), "step": torch.tensor(step)}, "ck.pt")
    elif form == "unseen":
        torch.save(state, buffer := io.BytesIO())
        open("ck.pt", "wb").write(buffer.getvalue())
    elif form == "never":
        torch.save(state, "out.pt")

def load():
    for name in sorted((n for n in os.listdir() if n.startswith("ck") and n.endswith(".pt")), reverse=True):
        try:
            if form == "safetensors":
                from safetensors.torch import load_file
                state = load_file(name)
                start = int(state.pop("step"))
                bare.load_state_dict(state)
                return start
            state = torch.load(name)
        except Exception:
            continue
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]
    return 0

start = load() if rank == 0 else 0
model = bare
if dist.is_initialized():
    box = [start]
    dist.broadcast_object_list(box)
    start = box[0]
    model = DistributedDataParallel(bare)
print("start", start, flush=True)
for step in range(start, 120):
    optimizer.zero_grad()
    model(torch.ones(1, 4)).square().sum().backward()
    optimizer.step()
    time.sleep(pause)
    while step == 100 and os.path.exists("hold"):
        time.sleep(0.02)
    if (step + 1) % 20 == 0:
        save(step + 1)
    if dies and step - start == dies and rank == 0:
        os._exit(1)
"""
"""Arguments: the optimizer, how it saves, after how many steps each attempt dies (0: never), and the pause in a step.
It waits at step 100 as long as there is a file `hold`."""


STAGES = """
import gc, os, torch

def stage(first, last):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    if start > first:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(max(start, first), last):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        if (step + 1) % 20 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, "ck.pt")

saved = torch.load("ck.pt") if os.path.exists("ck.pt") else {"step": 0}
start = saved["step"]
print("start", start, flush=True)
for first, last in (0, 60), (60, 120):
    if start < last:
        stage(first, last)
        gc.collect()
"""
"""Two trainings, one after the other."""


def starts(run: Run) -> list[int]:
    """Where each attempt began, in the script's own words."""
    found = []
    for number in run.dir.attempts():
        log = run.dir.attempt(number).rank_log(0).read_text()
        found += [int(line.split()[1]) for line in log.splitlines() if line.startswith("start ")]
    return found


def told(run: Run, command: str) -> Any:
    return json.loads(run.cli(command, "run", "--json").stdout)


def assert_true_to_the_script(run: Run) -> None:
    """What is said of each attempt is what the script says of itself."""
    report, began = told(run, "report"), starts(run)
    assert [a["from_step"] for a in report["attempts"]] == began
    done = [a["to_step"] for a in report["attempts"]]
    assert done[-1] == 120
    lost = [max(0, to - began[i + 1]) for i, to in enumerate(done[:-1])]
    assert [a["lost_steps"] for a in report["attempts"]] == [*lost, None] and report["lost_steps"] == sum(lost)
    assert told(run, "status")["step"] == 120


def test_further_each_time_is_never_given_up(run: Run) -> None:
    """Two ranks, one of which saves and loads: it dies every 29 steps, with room for one restart, and finishes."""
    options = ("--nproc", "2", "--max-restarts", "1", "--no-progress-limit", "1")
    assert run.launch(*options, run.script(SCRIPT), "sgd", "replace", "28") == 0

    assert starts(run) == [0, 20, 40, 60, 80, 100]
    assert_true_to_the_script(run)
    checkpoint = told(run, "status")["checkpoint"]
    assert (checkpoint["step"], checkpoint["path"]) == (120, str(run.folder / "ck.pt"))
    resumed = [(e["step"], e["source"], e["path"]) for e in run.events("resumed")]
    assert resumed == [(step, "script", str(run.folder / "ck.pt")) for step in (20, 40, 60, 80, 100)]
    assert f"offered 20 {run.folder / 'ck.pt'}\n" in run.dir.attempt(1).rank_log(0).read_text()


@pytest.mark.parametrize(
    ("kind", "form", "options"),
    [
        ("muon", "safetensors", ("--nproc", "1")),
        pytest.param("muon", "replace", ("--nproc", "1", "--no-standby"), marks=pytest.mark.long),
        ("adamw", "replace", ("--nproc", "2")),
        pytest.param("zero", "replace", ("--nproc", "2"), marks=pytest.mark.long),
    ],
)
def test_a_kill_between_two_saves(run: Run, kind: str, form: str, options: tuple[str, ...]) -> None:
    """Optimizers that count and that do not, from a fork that has bound the names of safetensors and from a cold
    start."""
    inject = ("--inject", "kill:rank=0@step=50", "--inject", "kill:rank=0@step=90")
    assert run.launch(*options, *inject, run.script(SCRIPT), kind, form, "0") == 0

    assert starts(run) == [0, 40, 80]
    assert_true_to_the_script(run)


def test_a_second_training(run: Run) -> None:
    """Its steps count on from those of the first, whose optimizer is gone, also after a restart in it and after one
    that found no save of it."""
    inject = ("--inject", "kill:rank=0@step=70", "--inject", "kill:rank=0@step=110")
    assert run.launch("--nproc", "1", *inject, run.script(STAGES)) == 0

    assert starts(run) == [0, 60, 100]
    assert_true_to_the_script(run)


def test_a_kill_in_a_save(run: Run) -> None:
    """What is half written is said to be torn and is nothing to go on from; an older save that is loaded is what
    counts."""
    assert run.launch("--plain-saves", run.script(SCRIPT), "sgd", "torn", "0") == 0

    assert starts(run) == [0, 40]
    assert_true_to_the_script(run)
    torn = str(run.folder / "ck060.pt")
    assert [e["text"] for e in run.events("warning") if torn in e["text"] and "torn" in e["text"] and "60" in e["text"]]
    assert f"offered 40 {run.folder / 'ck040.pt'}\n" in run.dir.attempt(1).rank_log(0).read_text()
    lines = [json.loads(line) for line in run.dir.attempt(1).saves(0).read_text().splitlines()]
    assert [line["path"] for line in lines if line["kind"] == "load_failed"] == [torn]


@pytest.mark.parametrize("standby", ["--standby", pytest.param("--no-standby", marks=pytest.mark.long)])
def test_a_kill_in_a_save_leaves_nothing(run: Run, standby: str) -> None:
    """It was written beside its place: the file is not there, nothing half written is, and nobody warns of a torn
    one."""
    assert run.launch(standby, run.script(SCRIPT), "sgd", "torn", "0") == 0

    assert starts(run) == [0, 40]
    assert run.warnings() == ""
    assert f"offered 40 {run.folder / 'ck040.pt'}\n" in run.dir.attempt(1).rank_log(0).read_text()
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".saving-")]
    assert torch.load(run.folder / "ck060.pt", weights_only=True)["step"] == 60


def test_the_same_steps_again_are_given_up(run: Run) -> None:
    """It saves, never loads, and dies at the same step: that is no progress, whatever it has saved."""
    assert run.launch("--nproc", "1", run.script(SCRIPT), "sgd", "never", "28") == 104

    report = told(run, "report")
    assert [(a["from_step"], a["to_step"], a["lost_steps"]) for a in report["attempts"]] == [(0, 29, 29), (0, 29, None)]


def test_a_step_that_nothing_tells(run: Run) -> None:
    """It saves in a way that nobody sees, and its optimizer does not count: nothing is made up, and the budget
    holds."""
    options = ("--nproc", "1", "--max-restarts", "2")
    assert run.launch(*options, run.script(SCRIPT), "sgd", "unseen", "28") == 100

    report, status = told(run, "report"), told(run, "status")
    assert starts(run) == [0, 20, 40]
    assert [(a["from_step"], a["to_step"]) for a in report["attempts"]] == [(0, 29), (None, None), (None, None)]
    assert [a["lost_steps"] for a in report["attempts"]] == [None] * 3 and status["step"] is None
    assert "at an unknown step" in report["reason"]
    assert report["ledger"]["redone_s"] == 0.0
    text = run.cli("report", "run").stdout + (run.folder / "stderr").read_text()
    assert "went on from a step that is not known" in text and "step 0" not in text


def test_own_saves_of_a_run_that_goes_on(run: Run) -> None:
    """Stopped and taken up again by another supervisor, the steps count on, and a checkpoint that is gone is not
    offered."""
    (run.folder / "hold").touch()
    run.start("--nproc", "1", run.script(SCRIPT), "muon", "replace", "0")
    run.until_event("first_step")
    until((run.folder / "ck.pt").exists)
    run.kill_supervisor()
    run.cli("stop", "run", "--now", check=103)
    kept = told(run, "status")["checkpoint"]
    assert kept["path"] == str(run.folder / "ck.pt") and kept["step"] % 20 == 0

    (run.folder / "hold").unlink()
    run.cli("resume", "run")

    assert starts(run)[-1] == run.events("first_step")[-1]["from_step"] == kept["step"]
    assert told(run, "report")["attempts"][-1]["to_step"] == 120
    (run.folder / "ck.pt").unlink()
    assert told(run, "status")["checkpoint"] is None
